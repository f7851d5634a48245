//! The log on disk: a folder for each topic, with segment files that are only ever appended to.
//!
//! A segment is a message set and nothing else, named by the offset of its first message, as in
//! Kafka. Only an index of where messages start, one in every [`INDEX_INTERVAL`] bytes, is in
//! memory. It is built when a segment is first used, so that a large log opens as fast as a small
//! one. The start of the newest messages is kept, too: a client that follows a topic reads nothing
//! else.
//!
//! The files that were appended to last stay open. Every other file is open for the length of one
//! operation, so that a thousand topics need no descriptors. Before an append, the path is compared
//! with the open file, so that a deleted folder is noticed.
//!
//! Appended means written to the file, not synced to the disk: it survives the end of the process
//! in any way, and can be lost with a power cut. A last message that is not complete, which either
//! can leave, is set aside when the topic is first used.
//!
//! Everything else that is damaged stays where it is, and costs the damaged messages alone. A segment
//! is checked when it is first used, and every message again when it is read. What is damaged is
//! reported once. Offsets are never changed and never given twice: after damage at the end of the
//! log, a new segment starts with an offset that no lost message can have had.
//!
//! `topic` appends, reads and deletes, `recovery` finds what is on disk and what of it is damaged,
//! `room` is how much the log may take of its disk, `segment` is one file and its index, `walk` gets from one
//! intact message to the next, `manifest` knows what a damaged segment had, `files` keeps files open. This module has
//! the folder that they are in.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::libc::{EMFILE, ENFILE};

use super::files::{check_dir, create, create_dir, other_writers};
use super::{Config, identity, lock};
use crate::error::{Error, Result};
use crate::name::Name;
use crate::wire::{ErrorCode, code};
pub(super) use files::MAX_OPEN;
use files::OpenFiles;
use room::Room;
pub(super) use topic::Topic;

mod files;
mod manifest;
mod recovery;
mod room;
mod segment;
#[cfg(test)]
mod tests;
mod topic;
mod walk;

/// The fewest bytes between two indexed messages; about as many are read to find a message. The index
/// takes a thousandth of the log.
const INDEX_INTERVAL: u64 = 16 * 1024;

/// The largest offset that a segment can start with. No log comes near it, and so nothing overflows.
const MAX_OFFSET: i64 = 1 << 48;

/// A hint for a process that may not open as many files as the broker needs.
pub(super) const TOO_FEW_DESCRIPTORS: &str = "Raise the limit of open files: ulimit -n 1024";

/// The file that is locked, with the address of the broker that has locked it.
const LOCK_FILE: &str = ".lock";

/// What follows a topic's name in the name of its folder: Kafka's number of the partition.
const PARTITION: &str = "-0";

/// All topics in one data directory, which is locked against other processes.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    config: Arc<Config>,
    /// Its identity.
    pub(super) id: u32,
    lock_file: File,
    /// Locked for a look-up, and while a topic is created.
    topics: Mutex<BTreeMap<String, Arc<Topic>>>,
    open_files: Arc<OpenFiles>,
    room: Arc<Room>,
    /// Locked while a topic is loaded, which can take a megabyte of memory: one at a time.
    loading: Arc<Mutex<()>>,
}

/// What a client is answered if a file cannot be read or written.
impl From<io::Error> for ErrorCode {
    fn from(_: io::Error) -> ErrorCode {
        code::KAFKA_STORAGE_ERROR
    }
}

/// Whether this process, or the system, has as many files open as it may.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

impl Log {
    /// Opens the log in `dir`, which is created if it does not exist, for a broker at `address`.
    ///
    /// Fails when the directory cannot be created or written, or when another broker has it open.
    pub(super) fn open(dir: &Path, address: &str, config: &Arc<Config>) -> Result<Log> {
        let failed = |why: &dyn Display| {
            let doing = format_args!("cannot use {} for the broker's log", dir.display());
            Error::failed(doing, why)
        };
        Log::lock_and_load(dir, address, config).map_err(|error| {
            if error.kind() != ErrorKind::WouldBlock {
                let found = dir.ancestors().find(|path| path.exists());
                let failed = match found.filter(|path| !path.is_dir()) {
                    Some(path) => failed(&format_args!("{} is not a folder", path.display())),
                    None => failed(&error),
                };
                return match is_out_of_descriptors(&error) {
                    true => failed.hint(TOO_FEW_DESCRIPTORS),
                    false => failed.hint("Name a writable directory with --data-dir DIR."),
                };
            }
            // Where locks are mandatory, the file cannot be read either: then the error does not name the address.
            let other = fs::read_to_string(dir.join(LOCK_FILE)).unwrap_or_default();
            match other.trim() {
                "" => failed(&"another broker is using it")
                    .hint("Name another directory with --data-dir."),
                other => {
                    let error = failed(&format_args!("the broker at {other} is using it"));
                    error.hint(format_args!(
                        "Talk to that one with -b {other}, \
                         or name another directory with --data-dir."
                    ))
                }
            }
        })
    }

    /// Locks the directory, and writes the address to the lock file. Fails with
    /// [`ErrorKind::WouldBlock`] if another broker has locked it.
    fn lock_and_load(dir: &Path, address: &str, config: &Arc<Config>) -> io::Result<Log> {
        // For its owner only.
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir)?;
        if let Some(others) = other_writers(dir, config.is_shared)? {
            config.report.say(format!(
                "Others can write to the folder of the log, and so change what is read from it. \
                 To end that: chmod {others}-w {}",
                dir.display()
            ));
        }
        let mut lock_file = create(&dir.join(LOCK_FILE))?;
        lock_file.try_lock()?;
        lock_file.set_len(0)?;
        lock_file.write_all(address.as_bytes())?;
        let stored = match identity::read(dir) {
            Ok(stored) => stored,
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::InvalidData => None,
                // The file may hold one that could not be read.
                _ => return Err(error),
            },
        };
        let id = match stored {
            Some(id) => {
                identity::protect(dir);
                id
            }
            None => identity::create(dir)?,
        };
        let (open_files, loading) = (Arc::default(), Arc::default());
        let room = Arc::new(Room::new(dir, config.max_log_bytes));
        let mut topics = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let name = file_name.to_str().and_then(|n| n.strip_suffix(PARTITION));
            if let Some(name) = name.filter(|n| n.parse::<Name>().is_ok()) {
                if let Err(error) = check_dir(&entry.path()) {
                    config
                        .report
                        .say(format!("cannot use topic {name}: {error}"));
                    continue;
                }
                let topic = Topic::new(name, dir, config, &open_files, &room, &loading);
                topics.insert(name.to_string(), Arc::new(topic));
            }
        }
        if stored.is_none() && !topics.is_empty() {
            config.report.say(format!(
                "The identity of the log in {} was gone or damaged, and is a new one. Programs that used the log before \
                 must be started again.",
                dir.display()
            ));
        }
        Ok(Log {
            dir: dir.to_path_buf(),
            config: Arc::clone(config),
            id,
            lock_file,
            topics: Mutex::new(topics),
            open_files,
            room,
            loading,
        })
    }

    /// Lets another broker open the log. Nothing may be appended afterwards.
    pub(super) fn release(&self) {
        lock(&self.open_files.0).clear();
        // After an error it stays locked until this is dropped.
        let _ = self.lock_file.unlock();
    }

    /// Another handle to the lock file: a descriptor that costs nothing else.
    pub(super) fn spare_descriptor(&self) -> io::Result<File> {
        self.lock_file.try_clone()
    }

    /// How many topics there are.
    pub(super) fn topic_count(&self) -> usize {
        lock(&self.topics).len()
    }

    /// The names of all topics, sorted.
    pub(super) fn topic_names(&self) -> Vec<String> {
        lock(&self.topics).keys().cloned().collect()
    }

    /// The topic of that name, if it exists.
    pub(super) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        lock(&self.topics).get(name).cloned()
    }

    /// Creates the topic, if it does not exist.
    pub(super) fn create_topic(&self, name: &str) -> Result<(), ErrorCode> {
        let mut topics = lock(&self.topics);
        if topics.contains_key(name) {
            return Ok(());
        }
        if name.parse::<Name>().is_err() {
            return Err(code::INVALID_TOPIC_EXCEPTION);
        }
        if topics.len() >= self.config.max_topics {
            self.config.report.say(format!(
                "There are {} topics, and the small broker creates no more. To make room, end all programs, and \
                 delete folders of topics in {}",
                topics.len(),
                self.dir.display()
            ));
            return Err(code::POLICY_VIOLATION);
        }
        let topic = Topic::new(
            name,
            &self.dir,
            &self.config,
            &self.open_files,
            &self.room,
            &self.loading,
        );
        // An existing folder is another topic's, on a disk where `Bob` is `bob`.
        create_dir(topic.dir()).map_err(|error| {
            let what = match topic::concerns_all_topics(&error) {
                true => "a topic".into(),
                false => topic.dir().display().to_string(),
            };
            self.config
                .report
                .say(format!("cannot create {what}: {error}"));
            error
        })?;
        topics.insert(name.to_string(), Arc::new(topic));
        Ok(())
    }
}
