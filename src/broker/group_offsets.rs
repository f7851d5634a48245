//! The offsets that consumer groups have committed, in one append-only file.
//!
//! The last record of a group and topic counts. When most records are superseded, the live ones are
//! written to a new file, which then replaces the old one. As with messages, committed means
//! written, not synced.
//!
//! ```text
//! size: u32  crc: u32  and in these size bytes:
//! group: u16 and bytes  topic: u16 and bytes  offset: i64  metadata: u16 and bytes
//! ```

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::log::append_at;

/// How many bytes of superseded records the file may have, however few are live.
const SLACK_BYTES: u64 = 1024 * 1024;

/// An offset committed for one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommittedOffset {
    pub(super) offset: i64,
    /// What the client keeps with it.
    pub(super) metadata: String,
}

/// Why offsets were not committed. None of them is.
#[derive(Debug)]
pub(super) enum NotCommitted {
    /// The limit of pairs of group and topic is reached.
    TooMany,
    /// They cannot be written.
    Io,
}

/// The committed offsets of all groups.
#[derive(Debug)]
pub(super) struct GroupOffsets {
    path: PathBuf,
    max: usize,
    /// Locked during a commit, and for a look-up.
    records: Mutex<Records>,
}

#[derive(Debug)]
struct Records {
    file: File,
    /// How many bytes of the file are records.
    len: u64,
    /// How many bytes of these are live records.
    live: u64,
    committed: HashMap<Key, CommittedOffset>,
}

/// A group and a topic.
type Key = (String, String);

impl GroupOffsets {
    /// Opens the file, which is created if it does not exist. A torn tail is ignored, and cut off by
    /// the next commit. At most `max` pairs of group and topic are kept.
    pub(super) fn open(path: &Path, max: usize) -> io::Result<GroupOffsets> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut committed = HashMap::new();
        let (mut len, mut live) = (0, 0);
        let mut rest = bytes.as_slice();
        while let Some((key, value, after)) = decode(rest) {
            len += (rest.len() - after.len()) as u64;
            rest = after;
            live += size(&key, &value);
            if let Some(old) = committed.insert(key.clone(), value) {
                live -= size(&key, &old);
            }
        }
        Ok(GroupOffsets {
            path: path.to_path_buf(),
            max,
            records: Mutex::new(Records {
                file,
                len,
                live,
                committed,
            }),
        })
    }

    /// What was committed for a group in a topic.
    pub(super) fn committed(&self, group: &str, topic: &str) -> Option<CommittedOffset> {
        let key = (group.to_string(), topic.to_string());
        self.records().committed.get(&key).cloned()
    }

    /// Commits offsets for a group, each with its topic.
    pub(super) fn commit(
        &self,
        group: &str,
        offsets: Vec<(String, CommittedOffset)>,
    ) -> Result<(), NotCommitted> {
        let mut records = self.records();
        let offsets: Vec<_> = offsets
            .into_iter()
            .map(|(topic, committed)| ((group.to_string(), topic), committed))
            .collect();
        let new = offsets
            .iter()
            .filter(|(key, _)| !records.committed.contains_key(key))
            .count();
        if records.committed.len() + new > self.max {
            return Err(NotCommitted::TooMany);
        }
        let mut bytes = Vec::new();
        for (key, value) in &offsets {
            encode(key, value, &mut bytes);
        }
        let len = records.len;
        let found = records.file.metadata().map_err(|_| NotCommitted::Io)?;
        append_at(&records.file, &found, len, &bytes).map_err(|_| NotCommitted::Io)?;
        records.len += bytes.len() as u64;
        for (key, value) in offsets {
            records.live += size(&key, &value);
            if let Some(old) = records.committed.get(&key) {
                records.live -= size(&key, old);
            }
            records.committed.insert(key, value);
        }
        if records.len > SLACK_BYTES + 2 * records.live {
            // These offsets are committed, whether this succeeds or not.
            let _ = self.compact(&mut records);
        }
        Ok(())
    }

    /// Replaces the file by one with the live records only.
    fn compact(&self, records: &mut Records) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (key, value) in &records.committed {
            encode(key, value, &mut bytes);
        }
        let new = self.path.with_extension("new");
        let file = File::create(&new)?;
        append_at(&file, &file.metadata()?, 0, &bytes)?;
        fs::rename(&new, &self.path)?;
        records.file = file;
        records.len = bytes.len() as u64;
        Ok(())
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many bytes the record takes.
fn size((group, topic): &Key, value: &CommittedOffset) -> u64 {
    (8 + 2 + group.len() + 2 + topic.len() + 8 + 2 + value.metadata.len()) as u64
}

fn encode(key: &Key, value: &CommittedOffset, out: &mut Vec<u8>) {
    let (group, topic) = key;
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    let string = |text: &str, out: &mut Vec<u8>| {
        // Strings in a request are not longer.
        out.extend_from_slice(&(text.len() as u16).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    };
    string(group, out);
    string(topic, out);
    out.extend_from_slice(&value.offset.to_be_bytes());
    string(&value.metadata, out);
    let size = (out.len() - start - 8) as u32;
    let sum = crc32fast::hash(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&sum.to_be_bytes());
}

/// The first record in `bytes`, and the bytes after it; `None` if it is not whole.
fn decode(bytes: &[u8]) -> Option<(Key, CommittedOffset, &[u8])> {
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (record, after) = rest.split_at_checked(u32::from_be_bytes(*size) as usize)?;
    if crc32fast::hash(record) != u32::from_be_bytes(*sum) {
        return None;
    }
    let (group, rest) = string(record)?;
    let (topic, rest) = string(rest)?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (metadata, _) = string(rest)?;
    let offset = i64::from_be_bytes(*offset);
    Some(((group, topic), CommittedOffset { offset, metadata }, after))
}

fn string(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (size, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(u16::from_be_bytes(*size).into())?;
    Some((str::from_utf8(text).ok()?.to_string(), rest))
}

#[cfg(test)]
mod tests {
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
                groups.commit(group, vec![(topic.clone(), committed)]).unwrap();
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
        for offset in 0..3 {
            open(&dir)
                .commit("g", vec![("t".into(), at(offset))])
                .unwrap();
        }
        let whole = fs::read(&path).unwrap();
        let record = whole.len() / 3;
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let expected = (cut / record).checked_sub(1).map(|n| at(n as i64));
            let groups = open(&dir);
            assert_eq!(groups.committed("g", "t"), expected, "cut at {cut}");
            groups.commit("g", vec![("u".into(), at(9))]).unwrap();
            let groups = open(&dir);
            assert_eq!(groups.committed("g", "t"), expected, "cut at {cut}");
            assert_eq!(groups.committed("g", "u"), Some(at(9)), "cut at {cut}");
        }
    }

    #[test]
    fn a_changed_byte_takes_its_record_and_what_follows() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("offsets");
        for offset in 0..3 {
            open(&dir)
                .commit("g", vec![("t".into(), at(offset))])
                .unwrap();
        }
        let whole = fs::read(&path).unwrap();
        let record = whole.len() / 3;
        for byte in 0..whole.len() {
            let mut changed = whole.clone();
            changed[byte] ^= 1;
            fs::write(&path, changed).unwrap();
            let expected = (byte / record).checked_sub(1).map(|n| at(n as i64));
            assert_eq!(open(&dir).committed("g", "t"), expected, "byte {byte}");
        }
    }

    #[test]
    fn superseded_records_are_dropped_when_they_take_too_much() {
        let dir = TempDir::new().unwrap();
        let groups = open(&dir);
        let metadata = "m".repeat(4000);
        groups.commit("other", vec![("t".into(), at(5))]).unwrap();
        let mut largest = 0;
        for offset in 0..1000 {
            let metadata = metadata.clone();
            groups
                .commit(
                    "g",
                    vec![("t".into(), CommittedOffset { offset, metadata })],
                )
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
        let dir = TempDir::new().unwrap();
        let groups = GroupOffsets::open(&dir.path().join("offsets"), 2).unwrap();
        for group in ["a", "b", "a"] {
            groups.commit(group, vec![("t".into(), at(1))]).unwrap();
        }
        let third = groups.commit("c", vec![("t".into(), at(1))]);
        assert!(matches!(third, Err(NotCommitted::TooMany)));
        assert_eq!(groups.committed("c", "t"), None);
    }
}
