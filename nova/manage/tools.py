"""nova-manage flags and completion: what needs no cloud."""

import argparse

from nova.flags import FLAGS
from nova.manage.command import Argument, Command, Session

_GFLAGS_OWN = frozenset({"?", "help", "helpshort", "helpxml", "flagfile", "undefok"})


async def _flags(session: Session, arguments: argparse.Namespace) -> None:
    wanted = arguments.part or ""
    session.show([{"flag": f"--{name}", "value": flag.value, "default": flag.default, "given": bool(flag.present),
                   "meaning": flag.help} for name, flag in sorted(FLAGS.FlagDict().items())
                  if flag.name == name and name not in _GFLAGS_OWN and wanted in name])


async def _completion(session: Session, arguments: argparse.Namespace) -> None:
    from nova.manage.cli import COMMANDS  # the table that this command is itself in
    print(bash(COMMANDS), end="")


def bash(commands: tuple[Command, ...]) -> str:
    """A completion for bash, made from the table of commands."""
    things: dict[str, list[Command]] = {}
    for command in commands:
        things.setdefault(command.thing, []).append(command)
    cases = []
    for thing, found in things.items():
        verbs = " ".join(command.verb for command in found if command.verb)
        if verbs:
            cases.append(f'        "{thing}") words="{verbs}" ;;')
        for command in found:
            words = " ".join(_words(command))
            if words:
                cases.append(f'        "{command.words}") words="{words}" ;;')
    return _BASH.format(things=" ".join(things), cases="\n".join(cases))


def _words(command: Command) -> list[str]:
    options = [a.name for a in command.arguments if a.name.startswith("--")]
    choices = [str(c) for a in command.arguments if not a.name.startswith("--") for c in a.options.get("choices", ())]
    return [*options, *(["--yes"] if command.destroys else []), *choices, "--json", "--help"]


_BASH = """\
# bash completion of nova-manage; load it with: . <(nova-manage completion bash)
_nova_manage() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} called= words="{things} --json --yes --help" word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        [[ $word == -* || $called == *" "* ]] || called=${{called:+$called }}$word
    done
    case $called in
{cases}
        ?*) words="--json --help" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [[ ${{#COMPREPLY[@]}} -gt 0 ]] || COMPREPLY=($(compgen -f -- "$current"))
}}
complete -F _nova_manage nova-manage
"""

COMMANDS = (
    Command("flags", "", "Show the flags, their values and what they mean.", _flags,
            (Argument("part", "only those whose names have this in them", {"nargs": "?"}),),
            ("flags", "flags port", "--json flags"), offline=True),
    Command("completion", "", "Print a shell's completion of nova-manage.", _completion,
            (Argument("shell", "which shell", {"choices": ["bash"]}),), (". <(nova-manage completion bash)",),
            offline=True),
)
