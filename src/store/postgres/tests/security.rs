//! Passwords and certificates.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::server::{PASSWORD, Postgres};
use super::{Log, Place, PostgresOptions, PostgresStore, admin, soon, up};
use crate::store::postgres::PostgresTls;
use crate::store::suite::kit;
use crate::store::{RunStore, StoreError};

/// Why the store cannot connect, once it has found out.
async fn refusal(options: PostgresOptions) -> String {
    let store = PostgresStore::connect(options).unwrap();
    let error = soon("a refusal", store.health()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let created = store.create(kit::new_run(kit::spec(1), None, 0)).await.unwrap_err();
    format!("{error} {error:?} {created} {created:?} {store:?}")
}

#[tokio::test]
async fn a_wrong_password_is_named_and_shown_nowhere() {
    let Some(place) = Place::fresh().await else { return };
    let log = Log::default();
    let _gathers = log.gather();
    let url = place.url.replace("hush%2Fhush", "wrong%2Fsecret");
    let options = PostgresOptions::new(url.parse().unwrap());
    let refused = refusal(options.clone()).await;
    assert!(refused.contains("password authentication failed for user \"postgres\""), "{refused}");
    let right = place.store();
    up(&right).await;
    let texts = format!("{refused} {options:?} {} {right:?} {:?} {}", options.url, place.options(), log.text());
    assert!(log.count("postgres is away") == 1 && log.count("password authentication failed") >= 1, "{texts}");
    for secret in [PASSWORD, "hush%2Fhush", "wrong/secret", "wrong%2Fsecret"] {
        assert!(!texts.contains(secret), "{texts}");
    }
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
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let files = TempDir::new().unwrap();
        std::fs::write(files.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { files, issuer }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A certificate for a host or a user, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

#[tokio::test]
async fn a_server_is_trusted_for_its_authority_and_its_name() {
    let Some(server) = Postgres::reserve(&["ssl=on", "ssl_ca_file=ca.crt"]) else { return };
    let authority = Authority::new();
    let (certificate, key) = authority.issue("127.0.0.1");
    server.file("server.crt", &certificate);
    server.file("server.key", &key);
    server.file("ca.crt", &authority.issuer.pem());
    // Whoever comes by TLS has to show a certificate of its own.
    let hba = "hostssl all all all scram-sha-256 clientcert=verify-ca\nhostnossl all all all scram-sha-256\n";
    server.file("pg_hba.conf", hba);
    server.run().await;

    let (certificate, key) = authority.issue("runcast");
    std::fs::write(authority.file("client.pem"), certificate).unwrap();
    std::fs::write(authority.file("client.key"), key).unwrap();
    let client = Some((authority.file("client.pem"), authority.file("client.key")));
    let own = PostgresTls { authorities: Some(authority.file("ca.pem")), client: client.clone() };
    let system = PostgresTls { authorities: None, client };
    let options = |mode: &str, host: &str, tls: &PostgresTls| {
        let url = format!("{}?sslmode={mode}", server.url("postgres")).replace("127.0.0.1", host);
        PostgresOptions { tls: tls.clone(), ..PostgresOptions::new(url.parse().unwrap()) }
    };
    let admin = admin(&format!("{}?sslmode=disable", server.url("postgres"))).await;
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
         WHERE ssl AND application_name = 'runcast'";
    for (mode, tls) in [("require", &own), ("verify-full", &own), ("prefer", &own), ("prefer", &system)] {
        let store = PostgresStore::connect(options(mode, "127.0.0.1", tls)).unwrap();
        up(&store).await;
        assert!(admin.query_one(encrypted, &[]).await.unwrap().get::<_, i64>(0) > 0, "{mode}");
        store.close().await;
    }
    for mode in ["require", "verify-full"] {
        let refused = refusal(options(mode, "127.0.0.1", &system)).await;
        assert!(refused.contains("UnknownIssuer"), "{refused}");
        let refused = refusal(options(mode, "localhost", &own)).await;
        assert!(refused.contains("certificate") && refused.contains("localhost"), "{refused}");
    }
    let without = PostgresTls { client: None, ..own };
    let refused = refusal(options("require", "127.0.0.1", &without)).await;
    assert!(refused.contains("certificate"), "{refused}");
}

#[tokio::test]
async fn a_certificate_file_that_is_none_is_named_at_the_start() {
    let authority = Authority::new();
    std::fs::write(authority.file("empty.pem"), "").unwrap();
    let ca = || Some(authority.file("ca.pem"));
    for (tls, named) in [
        (PostgresTls { authorities: Some(authority.file("none.pem")), client: None }, "none.pem"),
        (PostgresTls { authorities: Some(authority.file("empty.pem")), client: None }, "empty.pem"),
        (
            PostgresTls { authorities: ca(), client: Some((authority.file("ca.pem"), authority.file("empty.pem"))) },
            "empty.pem",
        ),
    ] {
        let options = PostgresOptions::new("postgres://u:hush@127.0.0.1:1/x?sslmode=require".parse().unwrap());
        let error = PostgresStore::connect(PostgresOptions { tls, ..options }).unwrap_err();
        assert!(matches!(&error, StoreError::Misconfigured(text) if text.contains(named)), "{error:?}");
        assert!(!error.to_string().contains("hush"));
    }
}
