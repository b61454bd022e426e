//! The lock of the database file: one process at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// Held while this process uses the data. The system takes it back when the process ends, however that
/// happens; the file stays, since removing it would race with the next process.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Locks the database at `path`, by the file `<path>.lock` beside it.
    pub(super) fn acquire(path: &Path) -> Result<Self, StoreError> {
        let lock_path = beside(path);
        let failed = |error: std::io::Error| {
            StoreError::ReadOnly(format!(
                "{} cannot be written: {error}; expected a directory that can be written to",
                lock_path.display()
            ))
        };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path, &mut file)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        write!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

fn in_use(path: &Path, file: &mut File) -> StoreError {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut owner = String::new();
    let process = match file.read_to_string(&mut owner) {
        Ok(_) if owner.trim().parse::<u32>().is_ok() => format!("process {}", owner.trim()),
        // The other process has the lock but has not written its number yet.
        _ => "another process".to_owned(),
    };
    StoreError::InUse(format!(
        "the data in {} is in use by {process}: stop it, or choose another directory",
        directory.display()
    ))
}
