"""nova.conf.sample is what the modules say."""

import pathlib

import gflags

from nova import sample

ROOT = pathlib.Path(__file__).parents[2]


def test_sample_is_current():
    assert (ROOT / "nova.conf.sample").read_text() == sample.generate(), \
        "run: python -m nova.sample > nova.conf.sample"


def test_sample_does_not_depend_on_where_it_was_made():
    assert str(ROOT) not in sample.generate()


def test_sample_is_a_flagfile_of_defaults(tmp_path):
    text = sample.generate()
    settings = [line[1:] for line in text.splitlines() if line.startswith("#--")]
    assert len(settings) > 10
    flags = gflags.FlagValues()
    for name, flag in sample.FLAGS.FlagDict().items():
        if name == flag.name and name not in ("flagfile", "undefok"):
            flags[name] = gflags.Flag(flag.parser, flag.serializer, name, flag.default, flag.help, boolean=flag.boolean)
    (tmp_path / "nova.conf").write_text("\n".join(s for s in settings if s != "--host="))
    flags(["test", f"--flagfile={tmp_path}/nova.conf"])
    for setting in settings:
        name = setting.lstrip("-").split("=")[0]
        name = name if name in flags else name.removeprefix("no")
        assert flags[name].value == flags[name].default or flags[name].default is None
