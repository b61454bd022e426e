//! Credentials and certificates.

use std::path::PathBuf;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use runcast_broker::{Announcement, Broker, BrokerError, Depth, ErrorKind};
use runcast_broker_amqp::{AmqpBroker, AmqpOptions, AmqpTls};
use runcast_broker_conformance::{Log, Mode, Proxy};
use tempfile::TempDir;

use crate::server::Certificates;
use crate::steps::{
    Space, alone, authority, connect, consume, depth_becomes, eventually, name, once_back, publish, shared, soon, take,
    text,
};

/// Certificates of an authority of its own.
pub(crate) struct Authority {
    files: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // a certificate whose issuer has its own name would count as self-signed
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let files = TempDir::new().unwrap();
        std::fs::write(files.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { files, issuer }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The files of a certificate for `name` and its key.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let files = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        std::fs::write(&files.0, certificate.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }

    pub(crate) fn server(&self, from_clients: bool) -> Certificates {
        let (certificate, key) = self.issue("127.0.0.1");
        Certificates { authority: self.file("ca.pem"), certificate, key, from_clients }
    }
}

const SECRET: &str = "hush/hush";
const ENCODED: &str = "hush%2Fhush";

/// Everything a broker does, once.
async fn all_of_it(broker: &AmqpBroker) {
    let (queue, topic, node) = (name("queue"), name("topic"), name("node"));
    once_back("health", async || broker.health().await).await;
    publish(broker, &queue, &["1", "2"]).await;
    let mut consumer = consume(broker, &[&queue], 1).await;
    take(&mut *consumer, "1").await.nack(Duration::from_millis(1)).await.unwrap();
    take(&mut *consumer, "2").await.reject("bad").await.unwrap();
    drop(take(&mut *consumer, "1").await);
    take(&mut *consumer, "1").await.ack().await.unwrap();
    let letter = broker.dead_letters(&queue, None, 1).await.unwrap().remove(0);
    assert!(broker.requeue_dead_letter(&queue, &letter.id).await.unwrap());
    take(&mut *consumer, "2").await.reject("bad").await.unwrap();
    assert_eq!(broker.purge_dead_letters(&queue).await.unwrap(), 1);
    // through the wait, too
    tokio::join!(async { take(&mut *consumer, "3").await.ack().await.unwrap() }, publish(broker, &queue, &["3"]));
    depth_becomes(broker, &queue, Depth::default()).await;
    let mut watch = broker.watch(&topic).await.unwrap();
    broker.announce(&topic, text("news")).await.unwrap();
    assert_eq!(soon("news", watch.next()).await.unwrap(), Announcement::Payload(text("news")));
    broker.presence(&node, text("here"), Duration::from_secs(60)).await.unwrap();
    assert_eq!(broker.nodes().await.unwrap().len(), 1);
    drop((consumer, watch));
    soon("close", broker.close()).await;
}

/// Why the broker cannot connect, once it has found out.
async fn refusal(options: AmqpOptions) -> BrokerError {
    let broker = connect(options).await;
    let error = soon("a refusal", broker.health()).await.unwrap_err();
    assert_eq!(soon("a refusal", broker.watch(&name("topic"))).await.err().unwrap().kind(), error.kind());
    let mut consumer = consume(&broker, &[&name("queue")], 1).await;
    assert_eq!(soon("a refusal", consumer.next()).await.unwrap_err().kind(), error.kind());
    error
}

#[tokio::test]
async fn a_user_with_the_documented_permissions_can_do_everything_once_its_password_is_right() {
    let Some(space) = shared().await else { return };
    let docs = include_str!("../../src/lib.rs");
    let permissions = docs.split("A user needs `").nth(1).unwrap().split('`').next().unwrap();
    let permissions = permissions.replace("\n//! ", " ").replace("runcast", space.namespace.as_str());
    let permissions: Vec<String> =
        permissions.split_whitespace().map(|pattern| format!("<<\"{}\">>", pattern.replace('\\', "\\\\"))).collect();
    let internal = async |function: &str, arguments: String| {
        assert_eq!(space.server.call("rabbit_auth_backend_internal", function, &arguments).await, "ok");
    };
    internal("add_user", "[<<\"runcast\">>, <<\"another\">>, <<\"tests\">>]".to_owned()).await;
    let set = format!("[<<\"runcast\">>, <<\"/\">>, {}, <<\"tests\">>]", permissions.join(", "));
    internal("set_permissions", set).await;

    let log = Log::default();
    let gathers = log.gather();
    let options = space.options_at(&format!("amqp://runcast:{ENCODED}@127.0.0.1:{}", space.server.port));
    let error = refusal(options.clone()).await;
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    let broker = connect(options.clone()).await;
    internal("change_password", format!("[<<\"runcast\">>, <<\"{SECRET}\">>, <<\"tests\">>]")).await;
    eventually("the password is right", async || broker.health().await.is_ok()).await;
    all_of_it(&broker).await;
    let stranger = space.options_at(&format!("amqp://nobody:{ENCODED}@127.0.0.1:{}", space.server.port));
    let stranger = refusal(stranger).await;
    assert_eq!(stranger.kind(), ErrorKind::Misconfigured);
    let elsewhere = space.options_at(&format!("amqp://runcast:{ENCODED}@127.0.0.1:{}/elsewhere", space.server.port));
    let elsewhere = refusal(elsewhere).await;
    assert_eq!(elsewhere.kind(), ErrorKind::Misconfigured, "{elsewhere}");
    drop(gathers);

    assert!(log.text().contains("rabbitmq is away"));
    let errors = format!("{error} {error:?} {stranger} {stranger:?} {elsewhere:?}");
    let texts = format!("{errors} {options:?} {} {}", options.url, log.text());
    for line in texts.lines() {
        assert!(!line.contains(SECRET) && !line.contains(ENCODED), "{line}");
    }
}

fn tls_options(space: &Space, authority: &Authority, client: Option<(PathBuf, PathBuf)>) -> AmqpOptions {
    let tls = AmqpTls { authorities: Some(authority.file("ca.pem")), client };
    AmqpOptions { tls, ..space.options_at(&format!("amqps://127.0.0.1:{}", space.server.tls_port)) }
}

#[tokio::test]
async fn tls_with_an_authority_of_its_own() {
    let Some(space) = shared().await else { return };
    let options = tls_options(&space, authority(), None);
    all_of_it(&connect(options.clone()).await).await;

    // the authorities of the system do not vouch for it, and another one does not either
    let system = AmqpOptions { tls: AmqpTls::default(), ..options.clone() };
    assert_eq!(refusal(system).await.kind(), ErrorKind::Misconfigured);
    let another = Authority::new();
    assert_eq!(refusal(tls_options(&space, &another, None)).await.kind(), ErrorKind::Misconfigured);
    // nor does the certificate name this host
    let elsewhere = format!("amqps://localhost:{}", space.server.tls_port).parse().unwrap();
    assert_eq!(refusal(AmqpOptions { url: elsewhere, ..options }).await.kind(), ErrorKind::Misconfigured);
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_asked_for() {
    let Some(space) = alone().await else { return };
    let client = authority().issue("client");
    all_of_it(&connect(tls_options(&space, authority(), Some(client))).await).await;
    // the reason may get lost with the connection, and is seen the next time
    let broker = connect(tls_options(&space, authority(), None)).await;
    let refused = |error: BrokerError| error.kind() == ErrorKind::Misconfigured;
    eventually("calls are refused", async || refused(broker.health().await.unwrap_err())).await;
    let mut consumer = consume(&broker, &[&name("queue")], 1).await;
    assert!(refused(soon("a refusal", consumer.next()).await.unwrap_err()));
}

#[tokio::test]
async fn a_reason_that_is_seen_late_reaches_those_who_wait() {
    let Some(space) = shared().await else { return };
    let proxy = Proxy::before(space.server.port).await;
    proxy.set(Mode::Refuse);
    let log = Log::default();
    let gathers = log.gather();
    let broker = connect(space.options_at(&format!("amqp://nobody:wrong@127.0.0.1:{}", proxy.port))).await;
    let mut consumer = consume(&broker, &[&name("queue")], 1).await;
    eventually("it has met a server that hangs up", async || log.text().contains("a consumer is interrupted")).await;
    proxy.set(Mode::Pass);
    assert_eq!(soon("a refusal", consumer.next()).await.unwrap_err().kind(), ErrorKind::Misconfigured);
    drop(gathers);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_named() {
    let options = AmqpOptions::new("amqps://127.0.0.1:1".parse().unwrap());
    let tls = AmqpTls { authorities: Some("/nowhere/ca.pem".into()), client: None };
    let error = AmqpBroker::connect(AmqpOptions { tls, ..options }).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
}
