//! What is known of each segment of a topic besides its file, in one more file beside them.
//!
//! A segment that ends with an intact message can't tell that others followed, a segment that is gone can't tell what it
//! had, and one that was put in the place of another is as intact as that. So the file `manifest` has a record for each
//! segment, which is written in its place after each append, and before the append is acknowledged:
//!
//! ```text
//! base: i64  end: i64  first: u32  crc: u32
//! ```
//!
//! `base` is the segment's first offset, `end` the one after its last message, and `first` the checksum of its first
//! message, or 0 if that is not known: logs of earlier versions had no such file. `crc` is the checksum of the other
//! three. A record that is damaged is none, and its place is used again, as are those of segments that were deleted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::broker::files::open_if_file;

/// The bytes of a record.
const RECORD_BYTES: usize = 24;

/// How many bytes are read: the records of 40,000 segments. A topic has about 130.
const MAX_BYTES: u64 = 1 << 20;

/// What is known of a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Record {
    /// The record's place in the file: how many are before it.
    pub(super) place: usize,
    /// The offset after the last message that was appended to it.
    pub(super) end: i64,
    /// The checksum of its first message.
    pub(super) first: Option<u32>,
}

/// The path of the file in a topic's folder.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("manifest")
}

/// The records in a topic's folder, by the first offset of their segments.
pub(super) fn read(dir: &Path) -> io::Result<BTreeMap<i64, Record>> {
    let Some(file) = open_if_file(&path(dir))? else {
        return Ok(BTreeMap::new());
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let records = bytes.chunks_exact(RECORD_BYTES).enumerate();
    Ok(records
        .filter_map(|(place, it)| decode(place, it))
        .collect())
}

/// A place that none of these records has.
pub(super) fn free_place(records: impl Iterator<Item = Record>) -> usize {
    let mut taken: Vec<_> = records.map(|record| record.place).collect();
    taken.sort_unstable();
    let at_its_place = |(n, place): &(usize, usize)| n == place;
    taken
        .into_iter()
        .enumerate()
        .take_while(at_its_place)
        .count()
}

/// Writes the record of the segment from `base` on.
pub(super) fn write(file: &File, base: i64, record: &Record) -> io::Result<()> {
    let first = record.first.unwrap_or(0).to_be_bytes();
    let covered = [&base.to_be_bytes()[..], &record.end.to_be_bytes(), &first].concat();
    let crc = crc32fast::hash(&covered).to_be_bytes();
    let place = record.place * RECORD_BYTES;
    file.write_all_at(&[&covered[..], &crc].concat(), place as u64)
}

/// The first offset of a segment, and its record, from the bytes at a place.
fn decode(place: usize, bytes: &[u8]) -> Option<(i64, Record)> {
    let (base, rest) = bytes.split_first_chunk()?;
    let (end, rest) = rest.split_first_chunk()?;
    let (first, crc) = rest.split_first_chunk()?;
    if crc != crc32fast::hash(&bytes[..bytes.len() - crc.len()]).to_be_bytes() {
        return None;
    }
    let (base, end) = (i64::from_be_bytes(*base), i64::from_be_bytes(*end));
    let first = Some(u32::from_be_bytes(*first)).filter(|crc| *crc != 0);
    let record = Record { place, end, first };
    (0 <= base && base < end && end <= super::MAX_OFFSET).then_some((base, record))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::broker::files::create;

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = create(&path(dir.path())).unwrap();
        let record = |place, end, first| Record { place, end, first };
        let records = [
            (0, record(1, 7, Some(0xfedc_ba98))),
            (7, record(0, 300, None)),
            (1 << 40, record(3, 1 << 41, Some(1))),
        ];
        for (base, record) in &records {
            write(&file, *base, record).unwrap();
        }
        assert!(read(dir.path()).unwrap().into_iter().eq(records));
        let bytes = fs::read(path(dir.path())).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(path(dir.path()), damaged).unwrap();
            let left = records
                .iter()
                .filter(|(_, it)| it.place != at / RECORD_BYTES);
            let found = read(dir.path()).unwrap();
            assert!(found.into_iter().eq(left.copied()), "byte {at}");
        }
    }

    #[test]
    fn a_free_place_is_the_first_that_no_record_has() {
        let free = |places: &[usize]| {
            let record = |place: &usize| Record {
                place: *place,
                end: 1,
                first: None,
            };
            free_place(places.iter().map(record))
        };
        assert_eq!(free(&[]), 0);
        assert_eq!(free(&[1, 2]), 0);
        assert_eq!(free(&[2, 0, 1]), 3);
        assert_eq!(free(&[3, 0, 1]), 2);
    }
}
