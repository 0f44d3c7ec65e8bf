"""Data sets that need no download, and the user's own."""

from .dataset import Dataset as Dataset, Rows as Rows
from .load import DATASETS as DATASETS, check as check, load as load
