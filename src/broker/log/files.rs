//! Files that stay open between appends.

use std::collections::VecDeque;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::broker::files::{check_dir, create};
use crate::broker::lock;

/// How many files stay open.
pub(in crate::broker) const MAX_OPEN: usize = 16;

/// The files that were appended to last, at most [`MAX_OPEN`]. Locked for a look at the list, never
/// during an operation on a file.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(pub(super) Mutex<VecDeque<OpenFile>>);

/// A file to append to and to read.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) path: PathBuf,
    /// Device and inode, which no other file has while this one is open.
    identity: (u64, u64),
    file: Arc<File>,
}

impl OpenFiles {
    /// The file at `path`, which is created if it does not exist, and its metadata. It stays open
    /// until [`MAX_OPEN`] others were opened after it.
    pub(super) fn open(&self, path: PathBuf) -> io::Result<(Arc<File>, Metadata)> {
        let identity = |found: &Metadata| (found.dev(), found.ino());
        let (file, found) = match (self.close(&path), fs::symlink_metadata(&path)) {
            (Some(open), Ok(found)) if identity(&found) == open.identity => (open.file, found),
            _ => {
                // The folder may have been replaced by a link since, and the file is then another folder's.
                check_dir(path.parent().unwrap_or(&path))?;
                let file = create(&path)?;
                let found = file.metadata()?;
                (Arc::new(file), found)
            }
        };
        let mut list = lock(&self.0);
        list.push_back(OpenFile {
            path,
            identity: identity(&found),
            file: Arc::clone(&file),
        });
        if list.len() > MAX_OPEN {
            list.pop_front();
        }
        Ok((file, found))
    }

    /// The file at `path`, if it is open.
    pub(super) fn get(&self, path: &Path) -> Option<Arc<File>> {
        let list = lock(&self.0);
        let open = list.iter().find(|open| open.path == path)?;
        Some(Arc::clone(&open.file))
    }

    pub(super) fn close(&self, path: &Path) -> Option<OpenFile> {
        let mut list = lock(&self.0);
        let at = list.iter().position(|open| open.path == path)?;
        list.remove(at)
    }
}
