//! A line between an adapter and its server that can go silent without being cut, for tests of adapters.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy in front of a port of this machine.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    /// How often the line went silent. A connection passes bytes only until the next time.
    silences: watch::Sender<u32>,
}

impl Proxy {
    /// A proxy before `server`.
    ///
    /// # Panics
    ///
    /// When there is no free port.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (silences, silent) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut silent = silent.clone();
                silent.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        // both ends stay open for ever
                        Ok(()) = silent.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, silences }
    }

    /// All connections of now pass nothing any more; new ones do.
    pub fn silence(&self) {
        self.silences.send_modify(|silences| *silences += 1);
    }
}
