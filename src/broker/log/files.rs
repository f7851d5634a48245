//! Files that stay open between appends.

use std::collections::VecDeque;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::broker::lock;

/// How many files stay open.
pub(in crate::broker) const MAX_OPEN: usize = 16;

/// Appends `bytes` to the first `len` bytes of the file, whose metadata is `found`. After an error
/// the file has these first bytes and no more, at the latest when the next append starts.
pub(in crate::broker) fn append_at(
    file: &File,
    found: &Metadata,
    len: u64,
    bytes: &[u8],
) -> io::Result<()> {
    if found.len() > len {
        file.set_len(len)?;
    }
    file.write_all_at(bytes, len).inspect_err(|_| {
        let _ = file.set_len(len);
    })
}

/// The files that were appended to last, at most [`MAX_OPEN`]. Locked for a look at the list, never
/// during an operation on a file.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(Mutex<VecDeque<OpenFile>>);

/// A file to append to and to read.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) path: PathBuf,
    /// Device and inode, which no other file has while this one is open.
    identity: (u64, u64),
    pub(super) file: Arc<File>,
}

impl OpenFiles {
    pub(super) fn files(&self) -> MutexGuard<'_, VecDeque<OpenFile>> {
        lock(&self.0)
    }

    /// The file at `path`, which is created if it does not exist, and its metadata. It is removed
    /// from the list; [`keep`](OpenFiles::keep) puts it back.
    pub(super) fn take(&self, path: PathBuf) -> io::Result<(OpenFile, Metadata)> {
        let identity = |found: &Metadata| (found.dev(), found.ino());
        if let Some(open) = self.remove(&path)
            && let Ok(found) = fs::metadata(&path)
            && identity(&found) == open.identity
        {
            return Ok((open, found));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path)?;
        let found = file.metadata()?;
        let open = OpenFile {
            path,
            identity: identity(&found),
            file: Arc::new(file),
        };
        Ok((open, found))
    }

    /// Keeps a file open until [`MAX_OPEN`] others were kept after it.
    pub(super) fn keep(&self, file: OpenFile) {
        let mut files = self.files();
        files.push_back(file);
        if files.len() > MAX_OPEN {
            files.pop_front();
        }
    }

    /// The file at `path`, if it is open.
    pub(super) fn get(&self, path: &Path) -> Option<Arc<File>> {
        let files = self.files();
        let open = files.iter().find(|open| open.path == path)?;
        Some(Arc::clone(&open.file))
    }

    pub(super) fn remove(&self, path: &Path) -> Option<OpenFile> {
        let mut files = self.files();
        let at = files.iter().position(|open| open.path == path)?;
        files.remove(at)
    }

    pub(super) fn close(&self) {
        self.files().clear();
    }
}
