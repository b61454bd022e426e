//! What an [`AmqpBroker`](crate::AmqpBroker) is told: where the server is, and the bounds.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use runcast_broker::{BrokerError, ErrorKind, Name};

/// Where a RabbitMQ server is and who logs in: `amqp[s]://[user[:password]@]host[:port][/vhost]`.
///
/// The port is 5672, or 5671 with `amqps`, which speaks TLS; user and password are `guest`, and the
/// virtual host is `/`, unless given. User, password and virtual host are percent-encoded. `Display`
/// and `Debug` leave the password out.
#[derive(Clone)]
pub struct AmqpUrl(AMQPUri);

impl AmqpUrl {
    pub(crate) fn uri(&self) -> &AMQPUri {
        &self.0
    }

    pub(crate) fn tls(&self) -> bool {
        self.0.scheme == AMQPScheme::AMQPS
    }

    /// Takes the password out of `text`, which a driver or a server wrote. One that is also the
    /// user's name is no secret.
    pub(crate) fn scrub(&self, text: String) -> String {
        let user = &self.0.authority.userinfo;
        if user.password.is_empty() || user.password == user.username {
            return text;
        }
        text.replace(&user.password, "***")
    }
}

impl FromStr for AmqpUrl {
    type Err = BrokerError;

    /// Fails with [`ErrorKind::Misconfigured`]. The error does not repeat `text`.
    fn from_str(text: &str) -> Result<Self, BrokerError> {
        let invalid = || {
            let expected = "expected amqp[s]://[user[:password]@]host[:port][/vhost], with user, password and vhost \
                            percent-encoded";
            BrokerError::new(ErrorKind::Misconfigured, format!("invalid amqp url: {expected}"))
        };
        let rest = text.strip_prefix("amqp://").or_else(|| text.strip_prefix("amqps://")).ok_or_else(invalid)?;
        // queries are the driver's own
        if text.contains(['?', '#']) || text.contains(char::is_whitespace) {
            return Err(invalid());
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if host.is_empty() || host.starts_with(':') || path.contains('/') {
            return Err(invalid());
        }
        let mut uri: AMQPUri = text.parse().map_err(|_| invalid())?;
        if let Some((literal, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            // the driver would take it for localhost
            uri.authority.host = literal.to_owned();
        }
        if uri.vhost.is_empty() {
            uri.vhost = "/".to_owned();
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.0;
        let host = &authority.host;
        write!(f, "{scheme}://{}@", authority.userinfo.username)?;
        if host.contains(':') {
            write!(f, "[{host}]")?
        } else {
            f.write_str(host)?
        }
        write!(f, ":{}/{}", authority.port, vhost.replace('/', "%2f"))
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Certificates for `amqps`, as PEM files. They are read again for each connection, so that renewed
/// ones take effect by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AmqpTls {
    /// The authorities that may vouch for the server, instead of those of the system.
    pub authorities: Option<PathBuf>,
    /// This client's certificate chain and private key, for servers that ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What an [`AmqpBroker`](crate::AmqpBroker) is told. [`new`](Self::new) gives the defaults.
#[derive(Debug, Clone)]
pub struct AmqpOptions {
    /// The server.
    pub url: AmqpUrl,
    /// Certificates. Only for `amqps`.
    pub tls: AmqpTls,
    /// Stands before every queue and exchange; brokers see each other when they have it in common.
    /// At most [`MAX_NAMESPACE`](Self::MAX_NAMESPACE) bytes. Default `runcast`.
    pub namespace: Name,
    /// What the connections and consumers of this process are called where people look at the
    /// server. Processes may share it. Default: random.
    pub consumer: Option<Name>,
    /// How often the two sides of a connection show that they live; one that shows nothing for two
    /// of these is dead, its deliveries return and its subscriptions end. Whole seconds, 1 to 600.
    /// Default 5 s.
    pub heartbeat: Duration,
    /// How long opening a connection may take, with TLS and login. Default 5 s.
    pub connect_timeout: Duration,
    /// How long one call may take, waiting for a connection included. The connection is replaced
    /// when it passes, unless the server has raised an alarm. Default 5 s.
    pub command_timeout: Duration,
    /// How many unread announcements each watcher keeps at most. What comes while it is full is
    /// dropped and read as one [`Announcement::Gap`](runcast_broker::Announcement::Gap) in its
    /// place. Default 1,024.
    pub watch_buffer: usize,
}

impl AmqpOptions {
    /// The longest namespace, in bytes: names of queues are at most 255 bytes.
    pub const MAX_NAMESPACE: usize = 100;

    /// The defaults, for the server at `url`.
    ///
    /// # Panics
    ///
    /// Never: the default namespace is a valid name.
    #[must_use]
    pub fn new(url: AmqpUrl) -> Self {
        Self {
            url,
            tls: AmqpTls::default(),
            namespace: Name::new("runcast").expect("a valid name"),
            consumer: None,
            heartbeat: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(5),
            watch_buffer: 1024,
        }
    }

    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        let wrong = |text: &str| Err(BrokerError::new(ErrorKind::Misconfigured, text));
        if self.namespace.as_str().len() > Self::MAX_NAMESPACE {
            return wrong("the namespace for rabbitmq is longer than 100 bytes");
        }
        if self.heartbeat.subsec_nanos() != 0 || !(1..=600).contains(&self.heartbeat.as_secs()) {
            return wrong("the heartbeat for rabbitmq is not 1 to 600 whole seconds");
        }
        if self.connect_timeout.is_zero() || self.command_timeout.is_zero() {
            return wrong("a time limit for rabbitmq is zero");
        }
        if self.tls != AmqpTls::default() && !self.url.tls() {
            return wrong("certificates are given for rabbitmq, but the url is not amqps://");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_shown_without_its_password() {
        let url: AmqpUrl = "amqps://user:hush%40hush@example.org:7000/a%2fb".parse().unwrap();
        assert_eq!(url.uri().authority.userinfo.password, "hush@hush");
        assert_eq!(url.uri().vhost, "a/b");
        assert_eq!(url.to_string(), "amqps://user@example.org:7000/a%2fb");
        let options = format!("{:?}", AmqpOptions::new(url.clone()));
        assert!(!options.contains("hush"), "{options}");
        assert_eq!(url.scrub("no hush@hush here".to_owned()), "no *** here");
        for (text, shown) in [
            ("amqp://localhost", "amqp://guest@localhost:5672/%2f"),
            ("amqp://localhost/", "amqp://guest@localhost:5672/%2f"),
            ("amqps://u:p@[::1]/v", "amqps://u@[::1]:5671/v"),
        ] {
            assert_eq!(text.parse::<AmqpUrl>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_repeating_it() {
        for text in [
            "hush",
            "http://:hush@h",
            "amqp://u:hush@",
            "amqp://u:hush@:5672",
            "amqp://u:hush@h/x/y",
            "amqps://u:hush@h/?auth_mechanism=external",
            "amqp://u:hu#sh@h",
            "amqp://u:hush@h:port",
        ] {
            let error = text.parse::<AmqpUrl>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Misconfigured);
            assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
        }
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let options = AmqpOptions::new("amqp://localhost".parse().unwrap());
        assert!(options.check().is_ok());
        let tls = AmqpTls { authorities: Some("ca.pem".into()), client: None };
        let namespace = Name::new("n".repeat(AmqpOptions::MAX_NAMESPACE + 1)).unwrap();
        for wrong in [
            AmqpOptions { tls, ..options.clone() },
            AmqpOptions { namespace, ..options.clone() },
            AmqpOptions { heartbeat: Duration::from_millis(1500), ..options.clone() },
            AmqpOptions { heartbeat: Duration::ZERO, ..options.clone() },
            AmqpOptions { command_timeout: Duration::ZERO, ..options },
        ] {
            assert_eq!(wrong.check().unwrap_err().kind(), ErrorKind::Misconfigured);
        }
    }
}
