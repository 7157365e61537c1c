"""What a model learns from: manifests, readers, splits, decoding, samplers and the ledger."""

from crossadapt.data.decoding import Unreadable, decode
from crossadapt.data.duplicates import DuplicateReport, find_duplicates
from crossadapt.data.files import cache_dir
from crossadapt.data.ledger import Ledger, LedgerEntry
from crossadapt.data.manifest import Manifest
from crossadapt.data.openmoji import export
from crossadapt.data.pixels import open_pixels
from crossadapt.data.readers import read_manifest, reader_names
from crossadapt.data.sampling import PairSampler
from crossadapt.data.stores import PixelStore

__all__ = [
    "DuplicateReport",
    "Ledger",
    "LedgerEntry",
    "Manifest",
    "PairSampler",
    "PixelStore",
    "Unreadable",
    "cache_dir",
    "decode",
    "export",
    "find_duplicates",
    "open_pixels",
    "read_manifest",
    "reader_names",
]
