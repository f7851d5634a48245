//! How much the log may take of its disk.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use crate::broker::lock;

/// How much of a disk stays free: so much, or a twentieth of a small one.
const FREE_BYTES: u64 = 256 << 20;
const FREE_PART: u64 = 20;

/// How often at most the files of a full log are counted again, which takes long if there are many.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// The bytes of all segments together.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    max_bytes: u64,
    /// Locked for a look, and to count what is on the disk.
    count: Mutex<Count>,
}

/// The bytes, and when they were last counted on the disk.
#[derive(Debug)]
struct Count {
    bytes: u64,
    counted: Instant,
}

impl Room {
    /// The room for the log in `dir`, which may take `max_bytes`.
    pub(super) fn new(dir: &Path, max_bytes: u64) -> Room {
        Room {
            dir: dir.to_path_buf(),
            max_bytes,
            count: Mutex::new(Count {
                bytes: count_files(dir),
                counted: Instant::now(),
            }),
        }
    }

    /// Takes so many bytes. Fails if the log has as many as it may have, or if the disk is almost full.
    pub(super) fn take(&self, size: u64) -> io::Result<()> {
        self.take_at(size, Instant::now())
    }

    fn take_at(&self, size: u64, now: Instant) -> io::Result<()> {
        let mut count = lock(&self.count);
        if count.bytes + size > self.max_bytes
            && now.saturating_duration_since(count.counted) >= COUNT_INTERVAL
        {
            // Others may have deleted files.
            *count = Count {
                bytes: count_files(&self.dir),
                counted: now,
            };
        }
        if count.bytes + size > self.max_bytes {
            let why = format!(
                "the log has {} MiB, and may not have more; end all programs, and delete folders of topics in {}",
                self.max_bytes >> 20,
                self.dir.display()
            );
            return Err(io::Error::new(ErrorKind::StorageFull, why));
        }
        let disk = statvfs(&self.dir)?;
        let all = to_bytes(disk.blocks(), disk.fragment_size());
        let free = to_bytes(disk.blocks_available(), disk.fragment_size());
        // Some file systems report no size.
        if all > 0 && free < size + FREE_BYTES.min(all / FREE_PART) {
            return Err(io::Error::new(
                ErrorKind::StorageFull,
                "the disk is almost full",
            ));
        }
        count.bytes += size;
        Ok(())
    }

    /// So many bytes were deleted, or not written.
    pub(super) fn give_back(&self, size: u64) {
        let mut count = lock(&self.count);
        count.bytes = count.bytes.saturating_sub(size);
    }
}

/// Blocks are counted in another type on macOS.
fn to_bytes(blocks: impl Into<u64>, size: impl Into<u64>) -> u64 {
    blocks.into() * size.into()
}

/// The bytes of all files in the folders in `dir`. What can't be read counts as nothing.
fn count_files(dir: &Path) -> u64 {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries(dir).flat_map(|folder| entries(&folder.path()));
    files
        .filter_map(|file| file.metadata().ok())
        .map(|found| found.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_full_log_are_counted_again_once_in_an_interval() {
        let dir = tempfile::tempdir().unwrap();
        let topic = dir.path().join("bob-0");
        fs::create_dir(&topic).unwrap();
        fs::write(topic.join("file"), [0; 100]).unwrap();
        let room = Room::new(dir.path(), 100);
        let start = lock(&room.count).counted;
        fs::remove_file(topic.join("file")).unwrap();
        let refused = room.take_at(1, start + COUNT_INTERVAL / 2).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull);
        room.take_at(1, start + COUNT_INTERVAL).unwrap();
    }
}
