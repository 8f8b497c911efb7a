"""The scripts by which bash, zsh and fish complete ``agentrl``.

click has such scripts, made for options. Settings need more: bash takes `key=value` apart at the equals sign, and what
goes on after a completion, as a key does with its value, may not be followed by a space. All three hand over the
line up to the cursor, and are given one candidate a line, a tab before its help.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

from agentrl.cli.completion import paths_like
from agentrl.environ import DEBUG

__all__ = ["add_shells"]

_LINE = "COMP_LINE"
_BREAKS = "COMP_WORDBREAKS"


class _Shell(ShellComplete):
    def get_completion_args(self) -> tuple[list[str], str]:
        """The arguments before the cursor, and what has been written of the one at it."""
        line = os.environ[_LINE]
        words = split_arg_string(line)
        incomplete = "" if not words or line[-1].isspace() else words.pop()
        names = [Path(word).name for word in words]
        return words[names.index(self.prog_name) + 1 :] if self.prog_name in names else words[1:], incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """The candidates, with the paths that click leaves to the shell."""
        found: list[CompletionItem] = []
        for item in super().get_completions(args, incomplete):
            found += (
                paths_like(item.value, None if item.type == "dir" else "") if item.type in ("dir", "file") else [item]
            )
        return found

    def complete(self) -> str:
        """The candidates, one a line. An error would be written across what the user is writing, so it is nothing."""
        try:
            return super().complete()
        except Exception:
            if os.environ.get(DEBUG):
                raise
            return ""

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.value}\t{item.help}" if item.help else str(item.value)


class _Bash(_Shell):
    name = "bash"
    source_template: ClassVar[str] = """\
%(complete_func)s() {
    local IFS=$'\\n' candidate
    for candidate in $(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
            %(complete_var)s=bash_complete "$1"); do
        COMPREPLY+=("$candidate")
        [[ $candidate == *[=/.] ]] && compopt -o nospace
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def format_completion(self, item: CompletionItem) -> str:
        """The candidate without what stands before the last character at which bash takes words apart."""
        value = str(item.value)
        _, incomplete = self.get_completion_args()
        breaks = set(os.environ.get(_BREAKS, "")) - set(" \t\n\"'")
        begun = max((incomplete.rfind(mark) for mark in breaks), default=-1) + 1
        return value[begun:]


class _Zsh(_Shell):
    name = "zsh"
    source_template: ClassVar[str] = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local line value
    local -a whole whole_told open open_told
    for line in "${(@f)$(env COMP_LINE="${(pj:\\n:)words[1,CURRENT-1]}"$'\\n'"$PREFIX" \\
            %(complete_var)s=zsh_complete $words[1])}"; do
        value="${line%%%%$'\\t'*}"
        [[ -z $value ]] && continue
        if [[ $value == *[=/.] ]]; then
            open+=("$value"); open_told+=("${line/$'\\t'/  -- }")
        else
            whole+=("$value"); whole_told+=("${line/$'\\t'/  -- }")
        fi
    done
    compadd -V agentrl -l -d whole_told -a whole
    compadd -V agentrl -l -d open_told -S '' -a open
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class _Fish(_Shell):
    name = "fish"
    source_template: ClassVar[str] = """\
function %(complete_func)s
    env COMP_LINE=(commandline -cp | string collect) %(complete_var)s=fish_complete (commandline -po)[1]
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


def add_shells() -> None:
    """Have click use these scripts in the place of its own."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)
