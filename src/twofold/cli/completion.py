"""`twofold completion bash|zsh|fish`: a script that completes verbs, presets, options, settings and their choices.

What there is to complete is a table in the script, so that the Tab key starts no Python. Each line of it is

    VERB o --option      VERB w word      VERB s path.of.a.setting choice|choice

with `-` for the verb where there is none yet. One awk program reads it in every shell and prints candidates; settings
are completed a part of their path at a time, and what is no candidate is left to the shell: files and folders.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator

from ..settings.describe import describe
from ..settings.presets import DISTILL, FEWLABEL, TRAINING, preset_names
from . import main as shell

OPTIONS = ()
PRESETS = {"train": TRAINING, "fewlabel": FEWLABEL, "distill": DISTILL}  # family of those that a verb takes
PLACEHOLDER = re.compile(r"[A-Z]+$|.*[\[\]{},]")  # what a setting accepts, in words instead of a choice

AWK = r"""
$1 == verb {
  if ($2 == "s") {
    if (index(cur, "=")) {
      if (index(cur, $3 "=") == 1) {
        n = split($4, choice, "|")
        for (i = 1; i <= n; i++) if (index($3 "=" choice[i], cur) == 1) print $3 "=" choice[i]
      }
    } else if (index($3, cur) == 1) {
      rest = substr($3, length(cur) + 1)
      dot = index(rest, ".")
      found = dot ? cur substr(rest, 1, dot) : $3 "="
      if (!seen[found]++) print found
    }
  } else if (index($3, cur) == 1 && ($2 == "w" || cur ~ /^-/) && !seen[$3]++) print $3
}
"""

BASH = r"""
_twofold() {
  local line="${COMP_LINE:0:COMP_POINT}" found cur verb=- IFS=$'\n'
  cur="${line##*[[:space:]]}"
  [ "$COMP_CWORD" -gt 1 ] && verb="${COMP_WORDS[1]}"
  COMPREPLY=( $(_twofold_candidates "$verb" "$cur") )
  if [ "$verb" != - ] && [ -n "$cur" ] && [[ "$cur" != *=* ]]; then
    for found in $(compgen -f -- "$cur"); do
      [ -d "$found" ] && found="$found/"
      COMPREPLY+=( "$found" )
    done
  fi
  if [ "${#COMPREPLY[@]}" -eq 1 ] && [[ "${COMPREPLY[0]}" == *[=./] ]]; then compopt -o nospace; fi
  if [[ "$cur" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then COMPREPLY=( "${COMPREPLY[@]#*=}" ); fi
}
complete -o default -F _twofold twofold
"""

ZSH = r"""
_twofold() {
  local cur="$PREFIX" verb=-
  local -a found closed open
  (( CURRENT > 2 )) && verb="${words[2]}"
  found=( ${(f)"$(_twofold_candidates "$verb" "$cur")"} )
  closed=( ${found:#*[=.]} )
  open=( ${(M)found:#*[=.]} )
  (( $#closed )) && compadd -- $closed
  (( $#open )) && compadd -S '' -- $open
  if [[ "$verb" != - ]]; then
    [[ "$cur" == *=* ]] && compset -P '*='
    _files
  fi
}
compdef _twofold twofold
"""

FISH = r"""
function _twofold_here
    set -l words (commandline -opc)
    set -l verb -
    test (count $words) -gt 1; and set verb $words[2]
    set -l cur (commandline -ct)
    set -l found (_twofold_candidates $verb $cur)
    test (count $found) -gt 0; and printf '%s\n' $found
    if test $verb != -
        if string match -q -- '*=*' $cur
            set -l key (string replace -r '=.*' '=' -- $cur)
            for path in (__fish_complete_path (string replace -r '^[^=]*=' '' -- $cur))
                printf '%s\n' $key$path
            end
        else
            __fish_complete_path $cur
        end
    end
end
complete -c twofold -f -a '(_twofold_here)'
"""

INSTALL = {
    "bash": "~/.local/share/bash-completion/completions/twofold",
    "zsh": "a file `_twofold.zsh` that ~/.zshrc sources after compinit",
    "fish": "~/.config/fish/completions/twofold.fish",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=list(INSTALL), help="bash, zsh or fish")


def more_help() -> str:
    """Where each shell looks for the script."""
    lines = (f"  twofold completion {name:<4} > {place}" for name, place in INSTALL.items())
    return "\n".join(["to install it (again after an update):", *lines])


def run(args: argparse.Namespace) -> int:
    print(script(args.shell))
    return 0


def script(name: str) -> str:
    """The script for bash, zsh or fish."""
    table = " \\\n  ".join(f"'{line}'" for line in entries())
    if name == "fish":
        start, first, second, end = "function _twofold_candidates", "$argv[1]", "$argv[2]", "end"
    else:
        start, first, second, end = "_twofold_candidates() {", '"$1"', '"$2"', "}"
    body = f"  printf '%s\\n' {table} | awk -v verb={first} -v cur={second} '{AWK}'"
    head = f"# completion of `twofold` for {name}; made by `twofold completion {name}`"
    rest = {"bash": BASH, "zsh": ZSH, "fish": FISH}[name].strip("\n")
    return f"{head}\n{start}\n{body}\n{end}\n{rest}"


def entries() -> Iterator[str]:
    """The lines of the table."""
    yield from (f"- w {verb}" for verb in shell.VERBS)
    yield from (f"- o {option}" for option in ("--help", "--version"))
    for name, (module, _) in shell.VERBS.items():
        verb = importlib.import_module(f".{module}", __package__)
        parser = shell.build_parser(name, verb)
        for action in parser._actions:
            yield from (f"{name} o {option}" for option in action.option_strings if option.startswith("--"))
            words = [] if action.option_strings else list(action.choices or str(action.metavar or "").split("|"))
            words = words if len(words) > 1 else []
            yield from (f"{name} w {word}" for word in words)
        if name in PRESETS:
            yield from (f"{name} w {preset}" for preset in preset_names(PRESETS[name]))
        model = shell.settings_model(verb)
        if model is not None:
            yield from (f"{name} s {path} {choices}".rstrip() for path, choices in settings(model).items())


def settings(model: type) -> dict[str, str]:
    """{path: its choices, as a|b} of every setting, over all kinds of its groups."""
    found: dict[str, list[str]] = {}
    for entry in describe(model):
        words = found.setdefault(entry.path, [])
        own = (word for word in entry.accepts.split("|") if word and not PLACEHOLDER.match(word))
        words += [word for word in own if word not in words]
        if entry.path.endswith(".kind") and (bare := found.setdefault(entry.path.removesuffix(".kind"), [])) != words:
            bare += [word for word in words if word not in bare]  # network=unet is network.kind=unet
    return {path: "|".join(words) for path, words in found.items()}
