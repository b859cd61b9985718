"""The papers' figures and tables as sweeps: what each needs, its plan, its run, its picture and its verdicts."""
