"""Input files of every format to blocks of records: found, unpacked, cut, resumed, sharded (see `read.read_blocks`)."""
