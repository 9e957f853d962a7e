"""Reports on a run, from its journal alone: the status, tables, the expansion figure."""

from expand.home import provide_caches

provide_caches()  # before any of these modules imports matplotlib, which looks for a home folder then
