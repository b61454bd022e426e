//! What a [`PostgresStore`](super::PostgresStore) is told: where the server is, and the bounds.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode as Wanted};

use crate::store::StoreError;

/// Where a PostgreSQL server is and who logs in: `postgres://[user[:password]@]host[:port][/database][?…]`.
///
/// The port is 5432; user and password are percent-encoded. After the `?` come parameters as libpq knows
/// them, such as `sslmode`, `options=-csearch_path%3Druncast` for a schema of its own,
/// `target_session_attrs=read-write` with several hosts. `Display` and `Debug` leave the password out.
#[derive(Clone)]
pub struct PostgresUrl {
    config: Config,
    tls: TlsMode,
}

/// When TLS is spoken, and what a certificate has to prove: the `sslmode` of the URL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// `disable`: never.
    Disable,
    /// `prefer`: if the server can. Without files in [`PostgresTls`] the certificate is not looked at: whoever
    /// can forge one can also claim that the server has none.
    #[default]
    Prefer,
    /// `require` and `verify-full`: always, and the certificate must be good for the name of the host. There is
    /// no mode between, so `require` is stricter than libpq's.
    Require,
}

impl PostgresUrl {
    /// When TLS is spoken.
    #[must_use]
    pub fn tls_mode(&self) -> TlsMode {
        self.tls
    }

    /// For the driver.
    pub(super) fn config(&self) -> Config {
        self.config.clone()
    }

    /// Takes the password out of `text`, which a driver or a server wrote.
    pub(super) fn scrub(&self, text: String) -> String {
        match self.config.get_password().and_then(|password| std::str::from_utf8(password).ok()) {
            Some(password) if !password.is_empty() => text.replace(password, "***"),
            _ => text,
        }
    }
}

fn invalid(why: &str) -> StoreError {
    StoreError::Misconfigured(format!("invalid postgres url: {why}"))
}

impl FromStr for PostgresUrl {
    type Err = StoreError;

    /// Fails with [`StoreError::Misconfigured`]. The error does not repeat `text`.
    fn from_str(text: &str) -> Result<Self, StoreError> {
        const EXPECTED: &str = "expected postgres://[user[:password]@]host[:port][/database][?parameters], with user \
                                and password percent-encoded";
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(invalid(EXPECTED));
        }
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        let (mut tls, mut parameters) = (TlsMode::default(), Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", "disable")) => tls = TlsMode::Disable,
                Some(("sslmode", "prefer")) => tls = TlsMode::Prefer,
                Some(("sslmode", "require" | "verify-full")) => tls = TlsMode::Require,
                Some(("sslmode", _)) => {
                    return Err(invalid("sslmode: expected disable, prefer, require or verify-full"));
                }
                _ => parameters.push(parameter),
            }
        }
        // The driver's own error may quote what it took for a parameter.
        let mut config: Config =
            format!("{address}?{}", parameters.join("&")).parse().map_err(|_| invalid(EXPECTED))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(invalid("it names no host"));
        }
        config.ssl_mode(match tls {
            TlsMode::Disable => Wanted::Disable,
            TlsMode::Prefer => Wanted::Prefer,
            TlsMode::Require => Wanted::Require,
        });
        if config.get_application_name().is_none() {
            config.application_name("runcast");
        }
        Ok(Self { config, tls })
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        if let Some(user) = self.config.get_user() {
            write!(f, "{user}@")?;
        }
        let ports = self.config.get_ports();
        for (at, host) in self.config.get_hosts().iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let port = ports.get(at).or(ports.first()).unwrap_or(&5432);
            match host {
                Host::Tcp(name) => write!(f, "{comma}{name}:{port}")?,
                Host::Unix(path) => write!(f, "{comma}{}", path.display())?,
            }
        }
        write!(f, "/{}", self.config.get_dbname().or(self.config.get_user()).unwrap_or_default())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Certificates, as PEM files. They are read again for each connection, so that renewed ones take effect by
/// themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PostgresTls {
    /// The authorities that may vouch for the server, instead of those of the system.
    pub authorities: Option<PathBuf>,
    /// This client's certificate chain and private key, for servers that ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What a [`PostgresStore`](super::PostgresStore) is told. [`new`](Self::new) gives the defaults.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The server.
    pub url: PostgresUrl,
    /// Certificates. Not with `sslmode=disable`.
    pub tls: PostgresTls,
    /// How many connections there are at most, at least 4: three are for the writes that go in batches, so that
    /// no burst of reads holds them up. They are opened when they are needed, and stay. Default 10.
    pub connections: usize,
    /// How long opening a connection may take, with TLS and login. Default 5 s.
    pub connect_timeout: Duration,
    /// How long one call may take, waiting for a connection included; a write that goes in a batch waits for the
    /// batch before its own, too. The connection is replaced when it passes. Default 5 s.
    pub query_timeout: Duration,
    /// Brings the tables up to date. Otherwise a database whose tables are of an older version is refused until
    /// [`migrate`](super::PostgresStore::migrate) has been called. Default: yes.
    pub auto_migrate: bool,
}

impl PostgresOptions {
    /// The defaults, for the server at `url`.
    #[must_use]
    pub fn new(url: PostgresUrl) -> Self {
        Self {
            url,
            tls: PostgresTls::default(),
            connections: 10,
            connect_timeout: Duration::from_secs(5),
            query_timeout: Duration::from_secs(5),
            auto_migrate: true,
        }
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        let wrong = |text: &str| Err(StoreError::Misconfigured(text.to_owned()));
        if self.connections < 4 {
            return wrong("postgres needs at least 4 connections");
        }
        if self.connect_timeout.is_zero() || self.query_timeout.is_zero() {
            return wrong("a time limit for postgres is zero");
        }
        if self.tls != PostgresTls::default() && self.url.tls == TlsMode::Disable {
            return wrong("certificates are given for postgres, but the url says sslmode=disable");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_shown_without_its_password() {
        let text = "postgresql://user:hush%40hush@example.org:7000/runs?sslmode=verify-full&connect_timeout=3";
        let url: PostgresUrl = text.parse().unwrap();
        assert_eq!(url.config().get_password(), Some(&b"hush@hush"[..]));
        assert_eq!(
            (url.tls_mode(), url.to_string().as_str()),
            (TlsMode::Require, "postgres://user@example.org:7000/runs")
        );
        let options = format!("{:?}", PostgresOptions::new(url.clone()));
        assert!(!options.contains("hush"), "{options}");
        assert_eq!(url.scrub("no hush@hush here".to_owned()), "no *** here");
        let url: PostgresUrl = "postgres://a@h,i:7/b".replace(":7", "").parse().unwrap();
        assert_eq!(url.to_string(), "postgres://a@h:5432,i:5432/b");
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_repeating_it() {
        for text in [
            "hush",
            "mysql://:hush@h",
            "host=h password=hush",
            "postgres://:hush@",
            "postgres://u:hush@h:port/x",
            "postgres://u:hush@h/x?sslmode=allow",
            "postgres://u:p@h/x?hush=1",
            "postgres://u:p@h/x?hush",
        ] {
            let error = text.parse::<PostgresUrl>().expect_err(text);
            assert!(matches!(error, StoreError::Misconfigured(_)));
            assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
        }
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let options = PostgresOptions::new("postgres://localhost?sslmode=disable".parse().unwrap());
        assert!(options.check().is_ok());
        let tls = PostgresTls { authorities: Some("ca.pem".into()), client: None };
        for wrong in [
            PostgresOptions { tls, ..options.clone() },
            PostgresOptions { connections: 3, ..options.clone() },
            PostgresOptions { connect_timeout: Duration::ZERO, ..options.clone() },
            PostgresOptions { query_timeout: Duration::ZERO, ..options },
        ] {
            assert!(matches!(wrong.check(), Err(StoreError::Misconfigured(_))));
        }
    }
}
