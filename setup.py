"""Packaging of Nova: what it consists of and what it needs.

``run.sh`` and ``run_tests.sh`` read the requirements from here, too: the file can be imported.
"""

from pathlib import Path

#: what every daemon needs
INSTALL_REQUIRES = [
    "Twisted>=23.10",
    "tornado>=6.4",
    "redis>=5.0",
    "hiredis>=3.0",  # redis reads long answers with it, eight times as fast as without
    "kombu>=5.3",
    "boto3>=1.36",
    "M2Crypto>=0.41",
    "cryptography>=43",  # X.509: M2Crypto has neither revocation lists nor key identifiers
    "python-gflags>=3.1.2",
    "six>=1.16",  # python-gflags uses it and does not say so
    "ldap3>=2.9",
    "IPy>=1.1",
    "anycrc>=2.0",
]

EXTRAS_REQUIRE = {
    # guests: without it only --compute_driver=fake
    "libvirt": ["libvirt-python>=9.0"],
    # the aws command, to talk to a cloud that runs
    "client": ["awscli>=1.37"],
    "tests": [
        "pytest>=8.0",
        "pytest-asyncio>=0.24",
        "pytest-xdist>=3.6",  # two workers: half the time
        "ruff>=0.8",
        "mypy>=1.13",
        "coverage>=7.0",
        "lxml>=5.0",
        "minio>=7.2",  # one of the clients that the object store is tried with
        "hypothesis>=6.100",  # random sequences of requests to the object store, and the shortest one that fails
        "sphinx>=6.2,<7.3",  # later ones want a docutils that awscli does not take
    ],
}


def requirements(*extras: str) -> list[str]:
    """What pip has to install for Nova with these extras."""
    return INSTALL_REQUIRES + [requirement for extra in extras for requirement in EXTRAS_REQUIRE[extra]]


if __name__ == "__main__":
    from setuptools import find_packages, setup

    setup(
        name="nova",
        version="0.1.0",
        description="A cloud controller that speaks the APIs of Amazon EC2 and S3",
        long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        python_requires=">=3.11",
        packages=find_packages(include=["nova", "nova.*"]),
        package_data={"nova.datastore": ["*.lua"], "nova.auth": ["ldap_schema/*.ldif"],
                      "nova.image": ["starter_files/*", *(f"debian_files/etc/{'*/' * n}*" for n in range(3))],
                      "nova.wire": ["data/*/*/*.json"]},
        scripts=sorted(f"bin/{path.name}" for path in Path(__file__).with_name("bin").glob("nova-*")),
        install_requires=INSTALL_REQUIRES,
        extras_require=EXTRAS_REQUIRE,
        classifiers=[
            "Intended Audience :: System Administrators",
            "License :: OSI Approved :: Apache Software License",
            "Operating System :: POSIX :: Linux",
            "Programming Language :: Python :: 3.11",
        ],
    )
