//! The offsets that consumer groups have committed, in one append-only file.
//!
//! The last record of a group and topic counts. When most records are superseded, the live ones are
//! written to a new file, which then replaces the old one. As with messages, committed means
//! written, not synced.
//!
//! Heartbeats are the exception: only the last one counts, and only for a few seconds, so they are kept in
//! memory. The file has what must outlive this process: the 0 that ends them, or -1 (nothing is committed) if
//! they go on.
//!
//! ```text
//! size: u32  crc: u32  and in these size bytes:
//! group: i16 and bytes  topic: i16 and bytes  offset: i64  metadata: i16 and bytes
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::HEARTBEATS;
use super::files::{append_at, create, replace};
use crate::wire::{self, CommittedOffset, ErrorCode, Reader, Unreadable, Wire, Writer, code};

/// How many bytes of superseded records the file may have, however few are live.
const SLACK_BYTES: u64 = 1024 * 1024;

/// The committed offsets of all groups.
#[derive(Debug)]
pub(super) struct GroupOffsets {
    path: PathBuf,
    max: usize,
    file: File,
    /// How many bytes of the file are records.
    len: u64,
    /// How many bytes of these are live records.
    live: u64,
    /// The live records, each with its size.
    committed: HashMap<Key, (CommittedOffset, u64)>,
    /// The last heartbeats of groups whose heartbeats go on, at most `max` of them.
    beats: HashMap<Key, CommittedOffset>,
}

/// A group and a topic.
type Key = (String, String);

impl GroupOffsets {
    /// Opens the file, which is created if it does not exist. A torn tail is ignored, and cut off by
    /// the next commit. At most `max` pairs of group and topic are kept.
    pub(super) fn open(path: &Path, max: usize) -> io::Result<GroupOffsets> {
        let mut offsets = GroupOffsets {
            path: path.to_path_buf(),
            max,
            file: create(path)?,
            len: 0,
            live: 0,
            committed: HashMap::new(),
            beats: HashMap::new(),
        };
        let mut bytes = Vec::new();
        offsets.file.read_to_end(&mut bytes)?;
        let mut r = Reader::new(&mut bytes, 0);
        while let Ok((key, committed, size)) = decode(&mut r) {
            offsets.insert(key, committed, size);
        }
        Ok(offsets)
    }

    /// What was committed for a group in a topic.
    pub(super) fn committed(&self, group: &str, topic: &str) -> Option<CommittedOffset> {
        let key = (group.to_string(), topic.to_string());
        let written = || self.committed.get(&key).map(|(found, _)| found);
        self.beats.get(&key).or_else(written).cloned()
    }

    /// Commits an offset for a group in a topic.
    pub(super) fn commit(
        &mut self,
        group: &str,
        topic: &str,
        committed: CommittedOffset,
    ) -> Result<(), ErrorCode> {
        let key = (group.to_string(), topic.to_string());
        if !group.starts_with(HEARTBEATS) {
            return self.write(key, committed);
        }
        if committed.offset == 0 {
            self.beats.remove(&key);
            return self.write(key, committed);
        }
        // A 0 in the file would say after a change of hosts that the heartbeats have ended.
        if self
            .committed
            .get(&key)
            .is_some_and(|(it, _)| *it != CommittedOffset::none())
        {
            self.write(key.clone(), CommittedOffset::none())?;
        }
        if self.beats.len() >= self.max && !self.beats.contains_key(&key) {
            return Err(code::POLICY_VIOLATION);
        }
        self.beats.insert(key, committed);
        Ok(())
    }

    /// Appends a record to the file.
    fn write(&mut self, key: Key, committed: CommittedOffset) -> Result<(), ErrorCode> {
        if self.committed.len() >= self.max && !self.committed.contains_key(&key) {
            return Err(code::POLICY_VIOLATION);
        }
        let bytes = encode(&key, &committed);
        let found = self.file.metadata()?;
        append_at(&self.file, &found, self.len, &bytes)?;
        self.insert(key, committed, bytes.len() as u64);
        if self.len > SLACK_BYTES + 2 * self.live {
            // The offset is committed, whether this succeeds or not.
            let _ = self.compact();
        }
        Ok(())
    }

    /// Replaces the file by one with the live records only.
    fn compact(&mut self) -> io::Result<()> {
        let live = self.committed.iter();
        let bytes: Vec<u8> = live
            .flat_map(|(key, (value, _))| encode(key, value))
            .collect();
        self.file = replace(&self.path, &bytes)?;
        self.len = bytes.len() as u64;
        Ok(())
    }

    /// Counts a record of this size that is in the file.
    fn insert(&mut self, key: Key, committed: CommittedOffset, size: u64) {
        self.len += size;
        self.live += size;
        if let Some((_, size)) = self.committed.insert(key, (committed, size)) {
            self.live -= size;
        }
    }
}

fn encode((group, topic): &Key, committed: &CommittedOffset) -> Vec<u8> {
    let mut w = Writer::default();
    group.write(&mut w);
    topic.write(&mut w);
    committed.write(&mut w);
    let size = (w.bytes.len() as u32).to_be_bytes();
    let sum = crc32fast::hash(&w.bytes).to_be_bytes();
    [&size[..], &sum, &w.bytes].concat()
}

/// Takes a record off the front, and returns its size, too. Fails if it is not whole.
fn decode(r: &mut Reader<'_>) -> wire::Result<(Key, CommittedOffset, u64)> {
    let (size, sum) = (u32::read(r)?, u32::read(r)?);
    let record = r.take(size)?;
    if crc32fast::hash(record) != sum {
        return Err(Unreadable);
    }
    let mut r = Reader::new(record, 0);
    let key = (Wire::read(&mut r)?, Wire::read(&mut r)?);
    Ok((key, Wire::read(&mut r)?, 8 + u64::from(size)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    fn at(offset: i64) -> CommittedOffset {
        CommittedOffset {
            offset,
            metadata: "m".into(),
        }
    }

    fn open(dir: &TempDir) -> GroupOffsets {
        GroupOffsets::open(&dir.path().join("offsets"), 100).unwrap()
    }

    /// The file of three commits, and the size of each.
    fn three_commits(dir: &TempDir, path: &Path) -> (Vec<u8>, usize) {
        for offset in 0..3 {
            open(dir).commit("g", "t", at(offset)).unwrap();
        }
        let whole = fs::read(path).unwrap();
        let record = whole.len() / 3;
        (whole, record)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_last_commit_counts_even_after_a_restart(
            commits in prop::collection::vec(("[ab]", "[xy]", any::<i64>(), ".{0,9}"), 0..30),
            reopen in any::<prop::sample::Index>(),
        ) {
            let dir = TempDir::new().unwrap();
            let mut groups = open(&dir);
            let mut model = HashMap::new();
            for (i, (group, topic, offset, metadata)) in commits.iter().enumerate() {
                if i == reopen.index(commits.len()) {
                    groups = open(&dir);
                }
                let committed = CommittedOffset { offset: *offset, metadata: metadata.clone() };
                model.insert((group.as_str(), topic.as_str()), committed.clone());
                groups.commit(group, topic, committed).unwrap();
            }
            for groups in [groups, open(&dir)] {
                for group in ["a", "b"] {
                    for topic in ["x", "y"] {
                        let expected = model.get(&(group, topic)).cloned();
                        prop_assert_eq!(groups.committed(group, topic), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_cut_and_commits_go_on() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("offsets");
        let (whole, record) = three_commits(&dir, &path);
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let expected = (cut / record).checked_sub(1).map(|n| at(n as i64));
            let mut groups = open(&dir);
            assert_eq!(groups.committed("g", "t"), expected, "cut at {cut}");
            groups.commit("g", "u", at(9)).unwrap();
            let groups = open(&dir);
            assert_eq!(groups.committed("g", "t"), expected, "cut at {cut}");
            assert_eq!(groups.committed("g", "u"), Some(at(9)), "cut at {cut}");
        }
    }

    #[test]
    fn a_changed_byte_takes_its_record_and_what_follows() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("offsets");
        let (whole, record) = three_commits(&dir, &path);
        for byte in 0..whole.len() {
            let mut changed = whole.clone();
            changed[byte] ^= 1;
            fs::write(&path, changed).unwrap();
            let expected = (byte / record).checked_sub(1).map(|n| at(n as i64));
            assert_eq!(open(&dir).committed("g", "t"), expected, "byte {byte}");
        }
    }

    #[test]
    fn neither_its_file_nor_the_one_that_replaces_it_is_a_symbolic_link() {
        use std::os::unix::fs::symlink;
        let (dir, victim) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let file = victim.path().join("file");
        fs::write(&file, "untouched").unwrap();
        symlink(&file, dir.path().join("offsets")).unwrap();
        let error = GroupOffsets::open(&dir.path().join("offsets"), 100).unwrap_err();
        assert!(error.to_string().contains("offsets is a symbolic link"));
        fs::remove_file(dir.path().join("offsets")).unwrap();
        symlink(&file, dir.path().join("offsets.new")).unwrap();
        let mut groups = open(&dir);
        groups.commit("g", "t", at(1)).unwrap();
        assert!(groups.compact().is_err());
        groups.commit("g", "t", at(2)).unwrap();
        assert_eq!(open(&dir).committed("g", "t"), Some(at(2)));
        assert_eq!(fs::read(&file).unwrap(), b"untouched");
    }

    #[test]
    fn superseded_records_are_dropped_when_they_take_too_much() {
        let dir = TempDir::new().unwrap();
        let mut groups = open(&dir);
        let metadata = "m".repeat(4000);
        groups.commit("other", "t", at(5)).unwrap();
        let mut largest = 0;
        for offset in 0..1000 {
            let metadata = metadata.clone();
            groups
                .commit("g", "t", CommittedOffset { offset, metadata })
                .unwrap();
            largest = largest.max(fs::metadata(dir.path().join("offsets")).unwrap().len());
        }
        assert!(largest < SLACK_BYTES + 20_000, "{largest}");
        for groups in [groups, open(&dir)] {
            assert_eq!(groups.committed("g", "t").unwrap().offset, 999);
            assert_eq!(groups.committed("other", "t"), Some(at(5)));
        }
    }

    #[test]
    fn a_pair_beyond_the_limit_is_refused() {
        for kind in ["", HEARTBEATS] {
            let dir = TempDir::new().unwrap();
            let mut groups = GroupOffsets::open(&dir.path().join("offsets"), 2).unwrap();
            for group in ["a", "b", "a"] {
                groups
                    .commit(&format!("{kind}{group}"), "t", at(1))
                    .unwrap();
            }
            let third = format!("{kind}c");
            let refused = groups.commit(&third, "t", at(1));
            assert_eq!(refused, Err(code::POLICY_VIOLATION));
            assert_eq!(groups.committed(&third, "t"), None);
        }
    }

    #[test]
    fn of_heartbeats_only_the_end_is_written() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("offsets");
        let mut groups = open(&dir);
        let offset = |groups: &GroupOffsets| groups.committed("here:a:b", "t").map(|it| it.offset);
        let length = || fs::metadata(&path).unwrap().len();
        // What is committed, what is then looked up, and what the next host knows.
        for (committed, next) in [
            (5, None),
            (6, None),
            (0, Some(0)),
            (7, Some(-1)),
            (8, Some(-1)),
            (0, Some(0)),
        ] {
            groups.commit("here:a:b", "t", at(committed)).unwrap();
            assert_eq!(offset(&groups), Some(committed));
            assert_eq!(offset(&open(&dir)), next, "after {committed}");
        }
        groups.commit("here:a:b", "t", at(9)).unwrap();
        let before = length();
        for beat in 10..100 {
            groups.commit("here:a:b", "t", at(beat)).unwrap();
        }
        assert_eq!(length(), before);
    }
}
