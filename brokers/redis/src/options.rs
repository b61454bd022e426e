//! What a [`RedisBroker`](crate::RedisBroker) is told: where the server is, and the bounds.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use runcast_broker::{BrokerError, ErrorKind, Name};

/// Where a Redis server is and who logs in: `redis[s]://[[user]:password@]host[:port][/database]`.
///
/// The port is 6379 and the database 0 unless given; user and password are percent-encoded. `rediss`
/// speaks TLS. `Display` and `Debug` leave the password out.
#[derive(Clone)]
pub struct RedisUrl(ConnectionInfo);

impl RedisUrl {
    pub(crate) fn info(&self) -> ConnectionInfo {
        self.0.clone()
    }

    pub(crate) fn tls(&self) -> bool {
        matches!(self.0.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// Takes the password out of `text`, which a driver or a server wrote.
    pub(crate) fn scrub(&self, text: String) -> String {
        match self.0.redis_settings().password() {
            Some(password) if !password.is_empty() => text.replace(password, "***"),
            _ => text,
        }
    }
}

impl FromStr for RedisUrl {
    type Err = BrokerError;

    /// Fails with [`ErrorKind::Misconfigured`]. The error does not repeat `text`.
    fn from_str(text: &str) -> Result<Self, BrokerError> {
        let invalid = || {
            let expected = "expected redis[s]://[[user]:password@]host[:port][/database], with user and password \
                            percent-encoded";
            BrokerError::new(ErrorKind::Misconfigured, format!("invalid redis url: {expected}"))
        };
        // fragments and queries are the driver's own; one of them turns the check of certificates off
        let ours = text.starts_with("redis://") || text.starts_with("rediss://");
        if !ours || text.contains(['?', '#']) {
            return Err(invalid());
        }
        let info = text.into_connection_info().map_err(|_| invalid())?;
        // the driver would tell the server its own name, which old servers and strict ACLs refuse
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let tcp = TcpSettings::default().set_nodelay(true);
        Ok(Self(info.set_redis_settings(settings).set_tcp_settings(tcp)))
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.0.redis_settings();
        f.write_str(if self.tls() { "rediss://" } else { "redis://" })?;
        if let Some(user) = settings.username() {
            write!(f, "{user}@")?;
        }
        write!(f, "{}/{}", self.0.addr(), settings.db())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Certificates for `rediss`, as PEM files. They are read again for each connection, so that renewed
/// ones take effect by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// The authorities that may vouch for the server, instead of those of the system.
    pub authorities: Option<PathBuf>,
    /// This client's certificate chain and private key, for servers that ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What a [`RedisBroker`](crate::RedisBroker) is told. [`new`](Self::new) gives the defaults.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// The server.
    pub url: RedisUrl,
    /// Certificates. Only for `rediss`.
    pub tls: RedisTls,
    /// Stands in every key and channel; brokers see each other when they have it in common. Default
    /// `runcast`.
    pub namespace: Name,
    /// What the consumers of this process are called, with a number behind it. No two living
    /// processes may share it. A process that comes back under its old name has the deliveries of its
    /// former life returned at once instead of after [`lease`](Self::lease). Default: random.
    pub consumer: Option<Name>,
    /// How long after its last sign of life a consumer counts as dead, and others take over what it
    /// held. Signs are given every third of it. At least a second. Default 30 s.
    pub lease: Duration,
    /// How long opening a connection may take, with TLS and login. Default 5 s.
    pub connect_timeout: Duration,
    /// How long one call may take, waiting for a connection included. The connection is replaced
    /// when it passes. Default 2 s.
    pub command_timeout: Duration,
    /// How many messages a queue holds at most: ready, delayed and outstanding. Beyond that `publish`
    /// and `requeue_dead_letter` fail with [`ErrorKind::Transient`]. Default 1,000,000.
    pub max_messages: u64,
    /// How many dead letters a queue keeps at most; the oldest is dropped for a new one, with a
    /// warning in the log. Default 10,000.
    pub max_dead_letters: u64,
    /// How many unread announcements each watcher keeps at most. What comes while it is full is
    /// dropped and read as one [`Announcement::Gap`](runcast_broker::Announcement::Gap) in its
    /// place. Default 1,024.
    pub watch_buffer: usize,
}

impl RedisOptions {
    /// The defaults, for the server at `url`.
    ///
    /// # Panics
    ///
    /// Never: the default namespace is a valid name.
    #[must_use]
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            tls: RedisTls::default(),
            namespace: Name::new("runcast").expect("a valid name"),
            consumer: None,
            lease: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(2),
            max_messages: 1_000_000,
            max_dead_letters: 10_000,
            watch_buffer: 1024,
        }
    }

    /// What this process is called on the server.
    pub(crate) fn consumer_name(&self) -> String {
        self.consumer.as_ref().map_or_else(|| format!("{:016x}", runcast_broker::random()), Name::to_string)
    }

    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        let wrong = |text| Err(BrokerError::new(ErrorKind::Misconfigured, text));
        if self.lease < Duration::from_secs(1) {
            return wrong("the lease of redis consumers is shorter than a second");
        }
        if self.connect_timeout.is_zero() || self.command_timeout.is_zero() {
            return wrong("a time limit for redis is zero");
        }
        if self.tls != RedisTls::default() && !self.url.tls() {
            return wrong("certificates are given for redis, but the url is not rediss://");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_shown_without_its_password() {
        let url: RedisUrl = "rediss://user:hush%40hush@example.org:7000/3".parse().unwrap();
        assert_eq!(url.info().redis_settings().password(), Some("hush@hush"));
        assert_eq!(url.to_string(), "rediss://user@example.org:7000/3");
        let options = format!("{:?}", RedisOptions::new(url.clone()));
        assert!(!options.contains("hush"), "{options}");
        assert_eq!(url.scrub("no hush@hush here".to_owned()), "no *** here");
        assert_eq!("redis://localhost".parse::<RedisUrl>().unwrap().to_string(), "redis://localhost:6379/0");
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_repeating_it() {
        for text in [
            "hush",
            "http://:hush@h",
            "unix:///hush",
            "redis://:hush@",
            "redis://:hush@h/x",
            "rediss://:hush@h/#insecure",
            "redis://:hush@h/?protocol=resp3",
            "redis://:hu#sh@h",
        ] {
            let error = text.parse::<RedisUrl>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Misconfigured);
            assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
        }
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let options = RedisOptions::new("redis://localhost".parse().unwrap());
        assert!(options.check().is_ok());
        let tls = RedisTls { authorities: Some("ca.pem".into()), client: None };
        for wrong in [
            RedisOptions { tls, ..options.clone() },
            RedisOptions { lease: Duration::ZERO, ..options.clone() },
            RedisOptions { command_timeout: Duration::ZERO, ..options },
        ] {
            assert_eq!(wrong.check().unwrap_err().kind(), ErrorKind::Misconfigured);
        }
    }
}
