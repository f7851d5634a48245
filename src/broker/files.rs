//! How files of the log are opened: for their owner alone, and never through a symbolic link, by which
//! somebody else who can write to the folder would choose what is read or overwritten. In a folder that its group can
//! write to, the group can use the files, too.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc::{EISDIR, ELOOP, O_NOFOLLOW, O_NONBLOCK};

/// Opens a file to read it.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().read(true), path)
}

/// Opens a file to read it; none if there is no file, or something else.
pub(super) fn open_if_file(path: &Path) -> io::Result<Option<File>> {
    match fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        true => open_to_read(path).map(Some),
        false => Ok(None),
    }
}

/// Opens a file to write and to read it. It is created if it does not exist.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = open(&mut options, path)?;
    // Earlier versions created files that everyone can read.
    let wanted = mode_in_folder_of(path) & 0o666;
    if file.metadata()?.permissions().mode() & 0o777 != wanted {
        // Only the owner may change that.
        let _ = file.set_permissions(fs::Permissions::from_mode(wanted));
    }
    Ok(file)
}

/// The mode of a folder that is created at `path`: its owner's alone, or also its group's, as the folder that it is in.
/// It gives its group to what is in it if that one does.
fn mode_in_folder_of(path: &Path) -> u32 {
    let mode = |dir| fs::metadata(dir).map_or(0, |found| found.permissions().mode());
    match path.parent().map_or(0, mode) {
        mode if mode & 0o020 != 0 => 0o770 | mode & 0o2000,
        _ => 0o700,
    }
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // A pipe of that name must not be waited for.
    let options = options.mode(0o600).custom_flags(O_NOFOLLOW | O_NONBLOCK);
    options.open(path).map_err(|error| {
        let what = match error.raw_os_error() {
            Some(ELOOP) => "is a symbolic link, which is not followed",
            Some(EISDIR) => "is a folder",
            _ => return error,
        };
        let name = path.file_name().unwrap_or_default().display();
        io::Error::new(error.kind(), format!("{name} {what}"))
    })
}

/// Creates a folder.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    check_dir(path)
}

/// Fails if something else than a folder is at `path`, and takes a folder that is there from everyone
/// who should not use it.
pub(super) fn check_dir(path: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        let name = path.file_name().unwrap_or_default().display();
        return Err(io::Error::other(format!("{name} is not a folder")));
    }
    let wanted = mode_in_folder_of(path);
    if found.permissions().mode() & 0o7777 != wanted {
        // Only the owner may change that.
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(wanted));
    }
    Ok(())
}

/// Which others than the owner can write to a folder, as in `chmod go-w`, unless its group should.
pub(super) fn other_writers(dir: &Path, is_shared: bool) -> io::Result<Option<&'static str>> {
    let mode = fs::metadata(dir)?.permissions().mode();
    Ok(match (mode & 0o020 != 0 && !is_shared, mode & 0o002 != 0) {
        (false, false) => None,
        (true, false) => Some("g"),
        (false, true) => Some("o"),
        (true, true) => Some("go"),
    })
}

/// Writes a file as a whole or not at all, also at a power cut, and returns it. Never more than one of its parts is in memory.
pub(super) fn replace(path: &Path, parts: impl Iterator<Item = Vec<u8>>) -> io::Result<File> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".new");
    let new = Path::new(&name);
    let file = create(new)?;
    file.set_len(0)?;
    let mut to = BufWriter::new(&file);
    for part in parts {
        to.write_all(&part)?;
    }
    to.flush()?;
    drop(to);
    // After a power cut, the name could stand for a file whose content never came to the disk.
    file.sync_all()?;
    fs::rename(new, path)?;
    Ok(file)
}

/// Appends `bytes` to the first `len` bytes of the file, whose metadata is `found`. After an error
/// the file has these first bytes and no more, at the latest when the next append starts.
pub(super) fn append_at(file: &File, found: &Metadata, len: u64, bytes: &[u8]) -> io::Result<()> {
    if found.len() > len {
        file.set_len(len)?;
    }
    file.write_all_at(bytes, len).inspect_err(|_| {
        let _ = file.set_len(len);
    })
}

/// The first `size` bytes of a file from `at` on, which must have them.
pub(super) fn read_part(path: &Path, at: u64, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    open_to_read(path)?.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}
