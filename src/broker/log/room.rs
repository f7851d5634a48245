//! How much the log may take of its disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::sys::statvfs::statvfs;

use crate::broker::lock;

/// How much of a disk stays free: so much, or a twentieth of a small one.
const FREE_BYTES: u64 = 256 << 20;
const FREE_PART: u64 = 20;

/// The bytes of all segments together.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    max_bytes: u64,
    /// Locked for a look, and to count what is on the disk.
    bytes: Mutex<u64>,
}

impl Room {
    /// The room for the log in `dir`, which may take `max_bytes`.
    pub(super) fn new(dir: &Path, max_bytes: u64) -> Room {
        Room {
            dir: dir.to_path_buf(),
            max_bytes,
            bytes: Mutex::new(count(dir)),
        }
    }

    /// Takes so many bytes. Fails if the log has as many as it may have, or if the disk is almost full.
    pub(super) fn take(&self, size: u64) -> io::Result<()> {
        let mut bytes = lock(&self.bytes);
        if *bytes + size > self.max_bytes {
            // Others may have deleted files.
            *bytes = count(&self.dir);
        }
        if *bytes + size > self.max_bytes {
            return Err(io::Error::other(format!(
                "the log has {} MiB, and may not have more; end all programs, and delete folders of topics in {}",
                *bytes >> 20,
                self.dir.display()
            )));
        }
        let disk = statvfs(&self.dir)?;
        let all = to_bytes(disk.blocks(), disk.fragment_size());
        let free = to_bytes(disk.blocks_available(), disk.fragment_size());
        // Some file systems report no size.
        if all > 0 && free < size + FREE_BYTES.min(all / FREE_PART) {
            return Err(io::Error::other("the disk is almost full"));
        }
        *bytes += size;
        Ok(())
    }

    /// So many bytes were deleted, or not written.
    pub(super) fn give_back(&self, size: u64) {
        let mut bytes = lock(&self.bytes);
        *bytes = bytes.saturating_sub(size);
    }
}

/// Blocks are counted in another type on macOS.
fn to_bytes(blocks: impl Into<u64>, size: impl Into<u64>) -> u64 {
    blocks.into() * size.into()
}

/// The bytes of all files in the folders in `dir`. What can't be read counts as nothing.
fn count(dir: &Path) -> u64 {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries(dir).flat_map(|folder| entries(&folder.path()));
    files
        .filter_map(|file| file.metadata().ok())
        .map(|found| found.len())
        .sum()
}
