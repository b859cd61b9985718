"""Options that several commands share with `bench run`: fields of the configuration, declared there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .config_options import declared

Data = Annotated[Path | None, declared("data")]
IncludePath = Annotated[Path | None, declared("include_path")]
Out = Annotated[Path, declared("out")]
Weak = Annotated[bool, declared("allow_weak_isolation")]
Revision = Annotated[str | None, declared("revision")]
Device = Annotated[str, declared("device")]
Engine = Annotated[str, declared("engine")]
Bos = Annotated[str | None, declared("bos")]
TrainSet = Annotated[str | None, declared("train_set")]
SaveDtype = Annotated[str | None, declared("save_dtype")]
TrainingRecipe = Annotated[str, declared("recipe")]
Memory = Annotated[str, declared("memory")]
CalibrationDtype = Annotated[str, declared("calibration_dtype")]
RankMultiple = Annotated[int, declared("rank_multiple")]
Placement = Annotated[str, declared("placement")]
Limit = Annotated[int | None, declared("limit")]
MaxNewTokens = Annotated[int | None, declared("max_new_tokens")]
Samples = Annotated[int, declared("samples")]
Temperature = Annotated[float, declared("temperature")]
ChatTemplate = Annotated[str, declared("chat_template")]
TopP = Annotated[float, declared("top_p")]
Context = Annotated[str | None, declared("context")]
