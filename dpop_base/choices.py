"""Words that a config key takes and the code behind it takes too."""

from typing import Literal, get_args

# What an example is made of. pair: a chosen and a rejected completion; single: one completion and its label;
# group: any number of both; sft: one completion that is imitated.
ExampleKind = Literal["pair", "single", "group", "sft"]
EXAMPLE_KINDS: tuple[ExampleKind, ...] = get_args(ExampleKind)

# What is done about an example of more than `data.max_tokens` tokens.
TooLong = Literal["stop", "drop", "truncate_prompt"]
TOO_LONG: tuple[TooLong, ...] = get_args(TooLong)

# What is done about a row that cannot be used.
BadRows = Literal["stop", "drop"]
BAD_ROWS: tuple[BadRows, ...] = get_args(BadRows)
