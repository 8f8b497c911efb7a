"""A completion parsed while it is sampled: what each token adds to the assistant message.

What ``IncrementalParser`` gives, joined, is the message that ``Renderer.parse`` returns for the whole completion, and
nothing is ever taken back. So it gives only what no later token can change, and keeps the rest for then: white space
that is stripped at the end of a text, the beginning of what may become a mark or a stop string, half a character.
How a family writes thinking and calls is its ``Notation``. Where that is not known, nothing is certain before the end.
"""

from agentrl.tokens.incremental.notation import Notation, Opened, notation_of
from agentrl.tokens.incremental.parser import IncrementalParser
from agentrl.tokens.incremental.told import Added, AddedCall

__all__ = ["Added", "AddedCall", "IncrementalParser", "Notation", "Opened", "notation_of"]
