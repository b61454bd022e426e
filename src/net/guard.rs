//! Which URLs may be called when a user has named them, or what a model says has become part of them.
//!
//! Such a URL must not become a way into the operator's own network: only addresses of the public internet are
//! called, but for those that the configuration allows. Literal addresses are looked at in the URL, names when they
//! are resolved; and only addresses that were looked at are connected to, so that a name which changes its mind
//! between the check and the call gains nothing. See [`Guard::client`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url, redirect};

/// A part of the network that may be called although it is not public: addresses, or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Addresses that agree with this one in the leading bits.
    Net(IpAddr, u8),
    /// This host, wherever it is.
    Host(String),
}

impl Allowed {
    fn holds(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::Net(IpAddr::V4(net), bits), IpAddr::V4(address)) => {
                alike(net.to_bits().into(), address.to_bits().into(), 96 + u32::from(*bits))
            }
            (Self::Net(IpAddr::V6(net), bits), IpAddr::V6(address)) => {
                alike(net.to_bits(), address.to_bits(), u32::from(*bits))
            }
            (Self::Net(IpAddr::V4(_), _), IpAddr::V6(_))
            | (Self::Net(IpAddr::V6(_), _), IpAddr::V4(_))
            | (Self::Host(_), _) => false,
        }
    }
}

/// Whether two numbers agree in their `bits` leading bits.
fn alike(one: u128, other: u128, bits: u32) -> bool {
    (one ^ other).leading_zeros() >= bits
}

/// What is neither a range of addresses, nor an address, nor a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected addresses such as 127.0.0.1/32 or fd00::/8, or a host name")]
pub struct InvalidAllowed;

impl FromStr for Allowed {
    type Err = InvalidAllowed;

    fn from_str(text: &str) -> Result<Self, InvalidAllowed> {
        if let Some((net, bits)) = text.split_once('/') {
            let net: IpAddr = net.parse().map_err(|_| InvalidAllowed)?;
            let most = if net.is_ipv4() { 32 } else { 128 };
            let bits: u8 = bits.parse().ok().filter(|bits| *bits <= most).ok_or(InvalidAllowed)?;
            return Ok(Self::Net(net, bits));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        match text {
            "" => Err(InvalidAllowed),
            name if name.len() <= 253 && name.bytes().all(plain) => Ok(Self::Host(name.to_ascii_lowercase())),
            _ => Err(InvalidAllowed),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net, bits) => write!(f, "{net}/{bits}"),
            Self::Host(name) => f.write_str(name),
        }
    }
}

/// Why a URL is not called. The text says nothing about the operator's network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It does not parse, or names no host.
    #[error("expected an https:// URL")]
    NoUrl,
    /// It is of another scheme.
    #[error("expected a URL that begins with https://")]
    Scheme,
    /// `http://`, and not to what the configuration allows in the key that it holds.
    #[error("expected a URL that begins with https://: plain http:// is for hosts of {0} alone")]
    Plain(Arc<str>),
    /// It holds a user or a password.
    #[error("expected a URL without user and password")]
    UserInfo,
    /// Its address is none of the public internet, or it has none that is, and the key that it holds does not name it.
    #[error("the host has no public address, and {0} does not name it")]
    Private(Arc<str>),
}

/// Decides which URLs and addresses may be called.
#[derive(Debug, Clone)]
pub struct Guard {
    allowed: Arc<[Allowed]>,
    /// The key of the configuration that says so.
    key: Arc<str>,
}

impl Guard {
    /// Allows the public internet and what is in `allowed`, the value of the configuration's `key`, which refusals name.
    #[must_use]
    pub fn new(key: &str, allowed: Vec<Allowed>) -> Self {
        Self { allowed: allowed.into(), key: key.into() }
    }

    fn plain(&self) -> Refused {
        Refused::Plain(Arc::clone(&self.key))
    }

    fn private(&self) -> Refused {
        Refused::Private(Arc::clone(&self.key))
    }

    /// The URL, if it may be called as far as that can be told without resolving its host.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn check(&self, url: &str) -> Result<Url, Refused> {
        let url = Url::parse(url).map_err(|_| Refused::NoUrl)?;
        let plain = match url.scheme() {
            "https" => false,
            "http" => true,
            _ => return Err(Refused::Scheme),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::UserInfo);
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(Refused::NoUrl)?;
        match literal(host) {
            Some(address) if self.names(address) => Ok(url),
            Some(address) if !is_public(address) => Err(self.private()),
            Some(_) if plain => Err(self.plain()),
            // Which addresses it has shows when it is called: `http` goes to those alone that are allowed by name.
            None if plain && !self.names_host(host) && !self.names_addresses() => Err(self.plain()),
            Some(_) | None => Ok(url),
        }
    }

    /// Whether `address` is allowed though it may not be public.
    fn names(&self, address: IpAddr) -> bool {
        let canonical = address.to_canonical();
        self.allowed.iter().any(|allowed| allowed.holds(address) || allowed.holds(canonical))
    }

    fn names_addresses(&self) -> bool {
        self.allowed.iter().any(|allowed| matches!(allowed, Allowed::Net(..)))
    }

    fn names_host(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        self.allowed.iter().any(|allowed| matches!(allowed, Allowed::Host(name) if name.eq_ignore_ascii_case(host)))
    }

    /// Which of the addresses of `host` may be connected to; `plain` by `http`.
    fn sift(&self, host: &str, addresses: impl Iterator<Item = SocketAddr>, plain: bool) -> Vec<SocketAddr> {
        let any = self.names_host(host);
        let may = |address: IpAddr| any || self.names(address) || (!plain && is_public(address));
        addresses.filter(|address| may(address.ip())).collect()
    }

    /// A client that connects to what may be called and to nothing else: it follows no redirect, and uses no proxy.
    /// Literal addresses do not come to a resolver: give it URLs that [`check`](Self::check) has passed, of the
    /// scheme that `plain` says.
    ///
    /// # Errors
    /// The machine's CA certificates cannot be loaded.
    pub fn client(&self, plain: bool, connect_timeout: Duration) -> reqwest::Result<Client> {
        let builder = Client::builder()
            .user_agent(concat!("runcast/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(connect_timeout)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .http1_only()
            .pool_max_idle_per_host(2)
            .pool_idle_timeout(Duration::from_secs(20))
            .dns_resolver(Arc::new(Sieve { guard: self.clone(), plain }));
        // Nothing is verified for http: no need to load the machine's CA certificates, or to have any.
        if plain { builder.tls_certs_only([]).build() } else { builder.https_only(true).build() }
    }
}

/// The address that `host`, as it stands in a URL, is, if it is one.
fn literal(host: &str) -> Option<IpAddr> {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse().ok()
}

/// Resolves names to the addresses that may be connected to.
struct Sieve {
    guard: Guard,
    plain: bool,
}

impl Resolve for Sieve {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, plain) = (self.guard.clone(), self.plain);
        Box::pin(async move {
            let host = name.as_str();
            let sifted = guard.sift(host, tokio::net::lookup_host((host, 0)).await?, plain);
            if sifted.is_empty() {
                return Err(guard.private().into());
            }
            Ok(Box::new(sifted.into_iter()) as Addrs)
        })
    }
}

/// Whether an address belongs to the public internet: those of private and shared networks do not, nor those of this
/// machine, of its link, of groups, of documentation, of benchmarks, of the clouds' own services, nor IPv6 addresses
/// that stand for such an IPv4 address.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Not public, by the IANA registry of special-purpose addresses, and beyond it.
const SPECIAL_V4: [(Ipv4Addr, u32); 17] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    // Azure's own services, at an address that looks public.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(255, 255, 255, 255), 32),
];

fn is_public_v4(address: Ipv4Addr) -> bool {
    let number = |address: Ipv4Addr| u128::from(address.to_bits());
    !SPECIAL_V4.iter().any(|(net, bits)| alike(number(*net), number(address), 96 + bits))
}

/// Within the one range that is handed out to networks, these are not public.
const SPECIAL_V6: [(Ipv6Addr, u32); 3] = [
    // The IETF's own, Teredo among them.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

fn is_public_v6(address: Ipv6Addr) -> bool {
    let within = |net: Ipv6Addr, bits| alike(net.to_bits(), address.to_bits(), bits);
    let segments = address.segments();
    let embedded = |at: usize| {
        let [high, low] = [segments[at], segments[at + 1]].map(u16::to_be_bytes);
        Ipv4Addr::new(high[0], high[1], low[0], low[1])
    };
    // Mapped, and translated by NAT64 (RFC 6052).
    if within(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96)
        || within(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96)
    {
        return is_public_v4(embedded(6));
    }
    // 6to4 (RFC 3056).
    if within(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16) {
        return is_public_v4(embedded(1));
    }
    within(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3) && !SPECIAL_V6.iter().any(|(net, bits)| within(*net, *bits))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guard(allowed: &[&str]) -> Guard {
        Guard::new("tools.x.allow", allowed.iter().map(|text| text.parse().unwrap()).collect())
    }

    const PUBLIC: [&str; 14] = [
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "64:ff9b::8.8.8.8",
        "::ffff:8.8.8.8",
        "2002:808:808::1",
    ];

    const PRIVATE: [&str; 50] = [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "::",
        "::1",
        "::2",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::127.0.0.1",
        "64:ff9b::10.1.2.3",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "2001::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ];

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for text in PUBLIC {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in PRIVATE {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn urls_are_refused_for_what_is_wrong_with_them() {
        let guard = guard(&[]);
        for (url, refused) in [
            ("", Refused::NoUrl),
            ("example.com", Refused::NoUrl),
            ("https://", Refused::NoUrl),
            ("ftp://example.com", Refused::Scheme),
            ("file:///etc/passwd", Refused::Scheme),
            ("http://example.com", guard.plain()),
            ("http://1.1.1.1/x", guard.plain()),
            ("https://u@example.com", Refused::UserInfo),
            ("https://u:p@example.com", Refused::UserInfo),
            ("https://127.0.0.1", guard.private()),
            ("http://127.0.0.1:8080", guard.private()),
            ("https://127.1", guard.private()),
            ("https://0x7f000001", guard.private()),
            ("https://2130706433/", guard.private()),
            ("https://0177.0.0.1/", guard.private()),
            ("https://127.0.0.1./", guard.private()),
            ("https://[::1]/", guard.private()),
            ("https://[::ffff:127.0.0.1]/", guard.private()),
            ("https://[::ffff:7f00:1]/", guard.private()),
            ("https://169.254.169.254/latest/meta-data", guard.private()),
            ("https://１２７.0.0.1/", guard.private()),
        ] {
            assert_eq!(guard.check(url).unwrap_err(), refused, "{url}");
        }
        for url in ["https://example.com/a?b=c", "https://example.com:8443", "https://1.1.1.1", "HTTPS://EXAMPLE.COM"] {
            assert!(guard.check(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn a_refusal_names_the_key_that_could_allow_it() {
        for url in ["https://127.0.0.1", "http://example.com"] {
            let text = guard(&[]).check(url).unwrap_err().to_string();
            assert!(text.contains("tools.x.allow"), "{text}");
        }
    }

    #[test]
    fn what_is_allowed_may_be_called_also_by_http() {
        let guard = guard(&["127.0.0.1/32", "fd00::/8", "Hooks.Internal", "10.1.2.3"]);
        for url in [
            "http://127.0.0.1:9/",
            "https://127.0.0.1",
            "http://[::ffff:127.0.0.1]/",
            "http://[fd12::1]",
            "http://hooks.internal/x",
            "https://hooks.internal./x",
            "http://10.1.2.3",
            "https://example.com",
            // Whether it is one of those addresses shows when it is resolved.
            "http://localhost:9",
        ] {
            assert!(guard.check(url).is_ok(), "{url}");
        }
        for url in ["http://127.0.0.2", "https://127.0.0.2", "http://[fe80::1]", "https://10.1.2.4", "http://1.1.1.1"] {
            assert!(guard.check(url).is_err(), "{url}");
        }
        let address = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let of = |host: &str, plain| {
            let all = ["127.0.0.1", "127.0.0.2", "8.8.8.8"].map(address);
            guard.sift(host, all.into_iter(), plain)
        };
        assert_eq!(of("hooks.internal", true).len(), 3, "wherever it is");
        assert_eq!(of("other.internal", true), [address("127.0.0.1")]);
        assert_eq!(of("other.internal", false), [address("127.0.0.1"), address("8.8.8.8")]);
    }

    #[test]
    fn what_is_allowed_is_addresses_or_a_name() {
        for (text, written) in [
            ("127.0.0.1/32", "127.0.0.1/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("::1", "::1/128"),
            ("fd00::/8", "fd00::/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("Hooks.Internal", "hooks.internal"),
        ] {
            assert_eq!(text.parse::<Allowed>().unwrap().to_string(), written);
        }
        for text in ["", "10.0.0.0/33", "::/129", "h/8", "10.0.0.0/x", "a b", "https://h", "h:80"] {
            assert_eq!(text.parse::<Allowed>(), Err(InvalidAllowed), "{text}");
        }
        let everything = guard(&["0.0.0.0/0"]);
        assert!(everything.names("10.0.0.1".parse().unwrap()) && !everything.names("::1".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_resolved() {
        for (guard, may) in [(guard(&[]), false), (guard(&["localhost"]), true)] {
            let sieve = Sieve { guard, plain: false };
            assert_eq!(sieve.resolve("localhost".parse().unwrap()).await.is_ok(), may);
        }
    }

    proptest! {
        /// However an IPv4 address is written into an IPv6 one, it is as public as it is.
        #[test]
        fn an_embedded_address_is_as_public_as_it_is(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let public = is_public(v4.into());
            for v6 in [
                v4.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            ] {
                prop_assert_eq!(is_public(v6.into()), public, "{}", v6);
            }
            prop_assert!(!is_public(v4.to_ipv6_compatible().into()));
        }

        /// Nothing is public that the standard library knows to be otherwise.
        #[test]
        fn nothing_is_public_that_is_known_to_be_private(bits: u32, wide: u128) {
            let v4 = Ipv4Addr::from_bits(bits);
            let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
                || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified();
            prop_assert!(!(special && is_public(v4.into())), "{}", v4);
            let v6 = Ipv6Addr::from_bits(wide);
            let special = v6.is_loopback() || v6.is_multicast() || v6.is_unspecified() || v6.is_unique_local()
                || v6.is_unicast_link_local();
            prop_assert!(!(special && is_public(v6.into())), "{}", v6);
        }

        /// Whatever a URL looks like, it is never called by a literal address that is not public.
        #[test]
        fn no_spelling_of_a_private_address_passes(index in 0..PRIVATE.len(), port: u16, path in "[a-z/?#@:.]{0,12}") {
            let address: IpAddr = PRIVATE[index].parse().unwrap();
            let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
            let spellings = match address {
                IpAddr::V4(v4) => vec![host, v4.to_bits().to_string(), format!("{:#x}", v4.to_bits())],
                IpAddr::V6(_) => vec![host],
            };
            for host in spellings {
                for scheme in ["http", "https"] {
                    let url = format!("{scheme}://{host}:{port}/{path}");
                    prop_assert!(guard(&[]).check(&url).is_err(), "{}", url);
                }
            }
        }
    }
}
