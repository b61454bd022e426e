//! Credentials and certificates.

use std::path::PathBuf;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use runcast_broker::{Announcement, Broker, BrokerError, Depth, ErrorKind};
use runcast_broker_conformance::Log;
use runcast_broker_redis::{RedisBroker, RedisOptions, RedisTls};
use tempfile::TempDir;

use crate::server::{Server, consume, depth, eventually, name, once_back, publish, soon, take, text};

const SECRET: &str = "hush/hush";
const ENCODED: &str = "hush%2Fhush";

/// Everything a broker does, once.
async fn all_of_it(broker: &RedisBroker) {
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
    assert_eq!(depth(broker, &queue).await, Depth::default());
    let mut watch = broker.watch(&topic).await.unwrap();
    broker.announce(&topic, text("news")).await.unwrap();
    assert_eq!(soon("news", watch.next()).await.unwrap(), Announcement::Payload(text("news")));
    broker.presence(&node, text("here"), Duration::from_secs(60)).await.unwrap();
    assert_eq!(broker.nodes().await.unwrap().len(), 1);
    drop((consumer, watch));
    soon("close", broker.close()).await;
}

/// Why the broker cannot connect, once it has found out.
async fn refusal(options: RedisOptions) -> BrokerError {
    let broker = RedisBroker::connect(options).await.unwrap();
    let error = soon("a refusal", broker.health()).await.unwrap_err();
    assert_eq!(soon("a refusal", broker.watch(&name("topic"))).await.err().unwrap().kind(), error.kind());
    let mut consumer = consume(&broker, &[&name("queue")], 1).await;
    assert_eq!(soon("a refusal", consumer.next()).await.unwrap_err().kind(), error.kind());
    error
}

fn with_url(server: &Server, url: String) -> RedisOptions {
    RedisOptions { url: url.parse().unwrap(), ..server.options() }
}

#[tokio::test]
async fn an_acl_user_with_the_documented_permissions_can_do_everything() {
    let docs = include_str!("../../src/lib.rs");
    let rules = docs.split("An ACL user needs `").nth(1).unwrap().split('`').next().unwrap();
    let rules = rules.replace("\n//!", "").replace("{runcast}", "{test}");
    let acl = TempDir::new().unwrap();
    let file = acl.path().join("users.acl");
    std::fs::write(&file, format!("user default off\nuser runcast on >{SECRET} -@all {rules}\n")).unwrap();
    let Some(server) = Server::start(&["--aclfile", file.to_str().unwrap()]).await else { return };
    let url = format!("redis://runcast:{ENCODED}@127.0.0.1:{}", server.port);
    all_of_it(&RedisBroker::connect(with_url(&server, url)).await.unwrap()).await;
}

#[tokio::test]
async fn a_wrong_password_is_misconfigured_until_it_is_right_and_shown_nowhere() {
    let Some(server) = Server::start(&["--requirepass", "another"]).await else { return };
    let log = Log::default();
    let _gathers = log.gather();
    let options = with_url(&server, format!("redis://:{ENCODED}@127.0.0.1:{}", server.port));
    let error = refusal(options.clone()).await;
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    let broker = RedisBroker::connect(options.clone()).await.unwrap();
    let client = redis::Client::open(format!("redis://:another@127.0.0.1:{}", server.port)).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("CONFIG").arg("SET").arg("requirepass").arg(SECRET).exec_async(&mut raw).await.unwrap();
    eventually("the password is right", async || broker.health().await.is_ok()).await;
    all_of_it(&broker).await;
    let none = refusal(server.options()).await;
    assert_eq!(none.kind(), ErrorKind::Misconfigured);

    assert!(log.text().contains("redis is away"));
    let texts = format!("{error} {error:?} {none} {none:?} {options:?} {} {}", options.url, log.text());
    assert!(!texts.contains(SECRET) && !texts.contains(ENCODED), "{texts}");
}

/// Certificates of an authority of its own.
struct Authority {
    files: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // openssl takes a certificate whose issuer has its own name for self-signed
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

    async fn server(&self, clients: &str) -> Option<Server> {
        let (certificate, key) = self.issue("127.0.0.1");
        let ca = self.file("ca.pem");
        let [certificate, key, ca] = [&certificate, &key, &ca].map(|path| path.to_str().unwrap());
        let files = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ca];
        Server::start(&[&["--tls-port", "--tls-auth-clients", clients][..], &files].concat()).await
    }

    fn options(&self, server: &Server, client: Option<(PathBuf, PathBuf)>) -> RedisOptions {
        let tls = RedisTls { authorities: Some(self.file("ca.pem")), client };
        RedisOptions { tls, ..with_url(server, format!("rediss://127.0.0.1:{}", server.port)) }
    }
}

#[tokio::test]
async fn tls_with_an_authority_of_its_own() {
    let authority = Authority::new();
    let Some(server) = authority.server("no").await else { return };
    let options = authority.options(&server, None);
    all_of_it(&RedisBroker::connect(options.clone()).await.unwrap()).await;

    // the authorities of the system do not vouch for it, and another one does not either
    let system = RedisOptions { tls: RedisTls::default(), ..options.clone() };
    assert_eq!(refusal(system).await.kind(), ErrorKind::Misconfigured);
    let another = Authority::new();
    assert_eq!(refusal(another.options(&server, None)).await.kind(), ErrorKind::Misconfigured);
    // nor does the certificate name this host
    let elsewhere = format!("rediss://localhost:{}", server.port).parse().unwrap();
    assert_eq!(refusal(RedisOptions { url: elsewhere, ..options }).await.kind(), ErrorKind::Misconfigured);
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_asked_for() {
    let authority = Authority::new();
    let Some(server) = authority.server("yes").await else { return };
    let client = authority.issue("client");
    all_of_it(&RedisBroker::connect(authority.options(&server, Some(client))).await.unwrap()).await;
    let error = refusal(authority.options(&server, None)).await;
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_named() {
    let options = RedisOptions::new("rediss://127.0.0.1:1".parse().unwrap());
    let tls = RedisTls { authorities: Some("/nowhere/ca.pem".into()), client: None };
    let error = RedisBroker::connect(RedisOptions { tls, ..options }).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
}
