"""What a plan will take: seconds, memory and disk, on this machine or on one that is named."""
