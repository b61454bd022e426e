//! The master key, from which all secrets are derived: no secret is in the database.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

use super::sign::{Secret, mac};
use crate::run::Tenant;

/// The least length of a master key, in bytes.
const LEAST: usize = 32;

/// Where the master key is to be had.
#[derive(Debug)]
pub struct Keys {
    source: Source,
    known: OnceLock<MasterKey>,
}

#[derive(Debug)]
enum Source {
    Given(SecretString),
    File(PathBuf),
    Missing,
}

/// Why there is no master key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyError {
    /// None is configured, and none can be made up: all nodes on a store have to have the same.
    #[error("webhooks need webhooks.key, which is not set")]
    Missing,
    /// Its file cannot be read or made.
    #[error("the key of webhooks in {path} cannot be used: {problem}; expected a file of at least {LEAST} bytes")]
    File {
        /// Which one.
        path: String,
        /// Why.
        problem: String,
    },
}

impl Keys {
    /// The key that the configuration holds.
    #[must_use]
    pub fn given(key: SecretString) -> Self {
        Self { source: Source::Given(key), known: OnceLock::new() }
    }

    /// The key in the file at `path`, which is made with a random one, readable by its owner alone, when a key is
    /// first needed and it is not there.
    #[must_use]
    pub fn file(path: PathBuf) -> Self {
        Self { source: Source::File(path), known: OnceLock::new() }
    }

    /// No key: whatever needs one fails.
    #[must_use]
    pub fn missing() -> Self {
        Self { source: Source::Missing, known: OnceLock::new() }
    }

    /// The key. May read or write a small file, the first time.
    ///
    /// # Errors
    /// There is none, or its file cannot be used.
    pub fn get(&self) -> Result<&MasterKey, KeyError> {
        if let Some(known) = self.known.get() {
            return Ok(known);
        }
        let key = match &self.source {
            Source::Given(key) => key.clone(),
            Source::File(path) => read_or_make(path)
                .map_err(|problem| KeyError::File { path: path.display().to_string(), problem: problem.to_string() })?,
            Source::Missing => return Err(KeyError::Missing),
        };
        Ok(self.known.get_or_init(|| MasterKey(key)))
    }
}

fn read_or_make(path: &Path) -> std::io::Result<SecretString> {
    if !path.try_exists()? {
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        // A temporary file is its owner's alone; and whole before it has its name.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        writeln!(file, "{}", STANDARD.encode(rand::random::<[u8; 32]>()))?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => tracing::info!(path = %path.display(), "made a key for webhooks"),
            // Somebody else was faster.
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.error),
        }
    }
    let text = SecretString::from(std::fs::read_to_string(path)?.trim_end());
    if text.expose_secret().len() < LEAST {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "it is too short"));
    }
    Ok(text)
}

/// What secrets are derived from.
#[derive(Debug, Clone)]
pub struct MasterKey(SecretString);

impl MasterKey {
    /// The secret of endpoint `id` in a version, which each rotation raises by one.
    #[must_use]
    pub fn of_endpoint(&self, id: Uuid, version: u32) -> Secret {
        self.derive(&[b"endpoint\0", id.as_bytes(), &version.to_be_bytes()])
    }

    /// The secret of the webhooks that a tenant's runs name themselves.
    #[must_use]
    pub fn of_tenant(&self, tenant: &Tenant) -> Secret {
        self.derive(&[b"tenant\0", tenant.as_str().as_bytes()])
    }

    fn derive(&self, parts: &[&[u8]]) -> Secret {
        Secret::new(mac(self.0.expose_secret().as_bytes(), parts))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn every_secret_is_another_and_always_the_same() {
        let keys = Keys::given("k".repeat(32).into());
        let others = Keys::given("l".repeat(32).into());
        let mut secrets = BTreeSet::new();
        for _ in 0..2 {
            for key in [keys.get().unwrap(), others.get().unwrap()] {
                for (id, version) in [(1, 1), (1, 2), (2, 1)] {
                    secrets.insert(key.of_endpoint(Uuid::from_u128(id), version).expose());
                }
                for tenant in ["a", "b"] {
                    secrets.insert(key.of_tenant(&Tenant::new(tenant)).expose());
                }
            }
        }
        assert_eq!(secrets.len(), 10);
    }

    #[test]
    fn a_file_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data").join("webhook.key");
        let secret = |keys: &Keys| keys.get().unwrap().of_tenant(&Tenant::default()).expose();
        let first = secret(&Keys::file(path.clone()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(secret(&Keys::file(path.clone())), first);
        std::fs::remove_file(&path).unwrap();
        assert_ne!(secret(&Keys::file(path)), first);
    }

    #[test]
    fn a_file_that_is_too_short_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("webhook.key");
        std::fs::write(&path, "\n").unwrap();
        let text = Keys::file(path).get().unwrap_err().to_string();
        assert!(text.contains("webhook.key") && text.contains("too short"), "{text}");
        assert!(Keys::missing().get().unwrap_err().to_string().contains("webhooks.key"));
    }
}
