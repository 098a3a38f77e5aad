"""Which implementation of nova.objectstore.storage keeps the files."""

from nova.flags import FLAGS, DEFINE_enum
from nova.objectstore import s3backend
from nova.objectstore.files import Files
from nova.objectstore.models import objects_path
from nova.objectstore.s3files import S3Files
from nova.objectstore.storage import Storage

DEFINE_enum("objectstore_driver", "local", ["local", "s3"], "what keeps the files of the object store: a directory, "
            "--objects_path; or a bucket of another S3, --objectstore_s3_bucket")


def open_files() -> Storage:
    """The files that the flags name; the caller closes them.

    :raises OSError: the directory cannot be made
    :raises FlagError: flags are missing that say where they are
    """
    if FLAGS.objectstore_driver == "s3":
        return S3Files(s3backend.open_backend(), FLAGS.objectstore_s3_connections)
    return Files(objects_path())
