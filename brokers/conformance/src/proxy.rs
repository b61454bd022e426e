//! A line between a client and its server that can be told to misbehave, for tests.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a proxy does with what passes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Hands it on.
    Pass,
    /// Keeps it, with the connections open, as a server does that has stopped.
    Stall,
    /// Hands it on after a while.
    Slow(Duration),
    /// Closes connections as they come; those that are open stay.
    Refuse,
}

/// A proxy in front of a port of this machine. Nobody is let in any more once it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    mode: watch::Sender<Mode>,
    cuts: watch::Sender<u64>,
    silences: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy before `server` that passes everything.
    ///
    /// # Panics
    ///
    /// When there is no free port.
    pub async fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (mode, modes) = watch::channel(Mode::Pass);
        let ((cuts, cut), (silences, silent)) = (watch::channel(0), watch::channel(0));
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                if *modes.borrow() != Mode::Refuse {
                    tokio::spawn(serve(client, server, modes.clone(), cut.clone(), silent.clone()));
                }
            }
        });
        Self { port, mode, cuts, silences, accepting }
    }

    /// What it does from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes all connections there are.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// The connections of now pass nothing any more, for ever, and stay open; new ones do.
    pub fn silence(&self) {
        self.silences.send_modify(|silences| *silences += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    client: TcpStream,
    server: u16,
    modes: watch::Receiver<Mode>,
    mut cut: watch::Receiver<u64>,
    mut silent: watch::Receiver<u64>,
) {
    cut.mark_unchanged();
    silent.mark_unchanged();
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let ((mut client_reads, mut client_writes), (mut server_reads, mut server_writes)) =
        (client.into_split(), server.into_split());
    tokio::select! {
        () = pass(&mut client_reads, &mut server_writes, modes.clone()) => {}
        () = pass(&mut server_reads, &mut client_writes, modes) => {}
        _ = cut.changed() => {}
        Ok(()) = silent.changed() => std::future::pending().await,
    }
}

async fn pass(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, mut modes: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let Ok(mode) = modes.wait_for(|mode| *mode != Mode::Stall).await.map(|mode| *mode) else { return };
        if let Mode::Slow(delay) = mode {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
