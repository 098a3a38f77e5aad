"""nova-manage objectstore: Redis rebuilt from the disk, and the disk compared with its checksums."""

import argparse
import os

from nova import events
from nova.auth import quota
from nova.cloud import verify as cloud_verify
from nova.flags import FLAGS
from nova.manage.command import FAILED, OK, Argument, Command, Refused, Row, Session
from nova.manage.progress import Line, mib
from nova.objectstore import reindex, verify
from nova.objectstore.driver import open_files
from nova.objectstore.models import Bucket, objects_path
from nova.objectstore.storage import Storage


class Progress(Line):
    """Files that have been looked at."""

    def __call__(self, files: int, size: int | None = None) -> None:
        seconds = self.due()
        if seconds:
            text = f"{files} files, {files / seconds:.0f}/s"
            self.show(text if size is None else f"{text}, {mib(size)}, {mib(size / seconds)}/s")


def _files() -> Storage:
    """The files that the flags name; :raises Refused: there are none"""
    path = objects_path()
    if FLAGS.objectstore_driver == "local" and not os.path.isdir(path):
        raise Refused(f"there is no directory {path}; --objects_path says where the objects are")
    return open_files()


async def _reindex(session: Session, arguments: argparse.Namespace) -> int:
    files, progress = _files(), Progress()
    try:
        session.confirm(f"rebuild the records of the objects in {files.place}")
        report = await reindex.reindex(session.store, files, progress)
    finally:
        progress.end()
        files.close()
    recounted = await quota.recount(session.store, cloud_verify.HOLDINGS, repair=True)
    await events.record(session.store, None, "objectstore.reindex", restored=dict(report.restored))
    rows: list[Row] = [{"what": f"{kind}s", "found": report.found[kind], "restored": report.restored[kind],
                        "about": ""} for kind in report.found]
    rows.append({"what": "descriptions written again", "found": report.described, "restored": 0, "about": ""})
    rows.append({"what": "counters of limits", "found": len(recounted), "restored": len(recounted), "about": ""})
    rows.append({"what": "files that nothing needs", "found": report.leftovers, "restored": 0,
                 "about": "the sweep removes them"})
    rows += [{"what": "cannot be read", "found": 1, "restored": 0, "about": f"{name}: {why}"}
             for name, why in report.unreadable]
    rows += [{"what": "file is missing", "found": 1, "restored": 0, "about": f"{name}: {file}"}
             for name, file in report.missing]
    session.show(rows)
    return FAILED if report.unreadable or report.missing else OK


async def _verify(session: Session, arguments: argparse.Namespace) -> int:
    bucket = arguments.bucket or ""
    if bucket and await session.store.get(Bucket, bucket) is None:
        raise Refused(f"there is no bucket {bucket}")
    files, progress = _files(), Progress()
    try:
        report = await verify.verify(session.store, files, bucket, not arguments.only_tell, progress)
    finally:
        progress.end()
        files.close()
    if report.damaged and not arguments.only_tell:
        await events.record(session.store, None, "objectstore.quarantine", damaged=len(report.damaged))
    session.say(f"read {report.objects} objects and {report.parts} parts, {report.bytes / 2**20:.1f} MiB; "
                f"{report.mended} are whole again, {report.described} descriptions were written again")
    session.show([{"object": d.about, "damage": d.what, "file": d.file} for d in report.damaged])
    return FAILED if report.damaged else OK


COMMANDS = (
    Command("objectstore", "reindex", "Rebuild the records of buckets, objects and uploads in Redis from the files on "
            "this host. It may run while the object store is used, and again. The exit code is 1 if something cannot "
            "be read or is missing.", _reindex, (), ("objectstore reindex", "--json objectstore reindex --yes"),
            destroys=True),
    Command("objectstore", "verify", "Read all objects and compare them with their checksums. What is damaged goes "
            "into quarantine, and reading the object is an InternalError. The exit code is 1 if something is damaged.",
            _verify, (Argument("--bucket", "only the objects in this bucket"),
                      Argument("--only-tell", "leave what is damaged where it is", {"action": "store_true"})),
            ("objectstore verify", "objectstore verify --bucket photos", "--json objectstore verify --only-tell")),
)
