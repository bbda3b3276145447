//! A receiver of alerts: a small HTTP server that keeps what it is told, and answers as a test wants it to.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;

use super::{s3::Certificates, wait_for};

/// One request.
#[derive(Clone, Debug)]
pub struct Told {
    /// Path and query.
    pub path: String,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The body.
    pub body: Value,
}

#[derive(Default)]
struct State {
    told: Mutex<Vec<Told>>,
    asked: AtomicUsize,
    /// What it answers; 0: 200.
    status: AtomicU16,
    token: Mutex<Option<String>>,
    ended: AtomicBool,
}

/// The server; it ends when dropped.
pub struct Receiver {
    address: SocketAddr,
    scheme: &'static str,
    state: Arc<State>,
}

impl Receiver {
    /// Listens on a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_on(0)
    }

    /// Listens on this port.
    pub fn start_on(port: u16) -> Self {
        Self::listen(port, None)
    }

    /// Listens with TLS.
    pub fn start_with_tls(certificates: &Certificates) -> Self {
        let chain =
            CertificateDer::pem_file_iter(certificates.path("public.crt")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(certificates.path("private.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        Self::listen(0, Some(Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap())))
    }

    fn listen(port: u16, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), shared, tls) = (stream, Arc::clone(&shared), tls.clone()) else { continue };
                std::thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
                    match tls {
                        Some(tls) => serve(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream), &shared),
                        None => serve(stream, &shared),
                    }
                });
            }
        });
        Self { address, scheme, state }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// An address on it.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// Answers with this status from now on, and keeps what it is told only where that is one of success.
    pub fn answer(&self, status: u16) {
        self.state.status.store(status, Ordering::SeqCst);
    }

    /// Answers 401 to whoever does not show this token.
    pub fn ask_for_token(&self, token: &str) {
        *self.state.token.lock().unwrap() = Some(token.to_owned());
    }

    /// Requests so far, those among them that were turned away.
    pub fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }

    /// What it was told so far.
    pub fn told(&self) -> Vec<Told> {
        self.state.told.lock().unwrap().clone()
    }

    /// What it was told since it was last asked this.
    pub fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.state.told.lock().unwrap())
    }

    /// Waits until it was told something of which `found` makes something.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, deadline: Duration, found: impl Fn(&Told) -> Option<T>) -> T {
        wait_for(what, deadline, || self.told().iter().find_map(&found))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        // Ends the listener's wait, and with it the listener.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: impl Read + Write, state: &State) {
    let Some((head, body)) = read_request(&mut stream) else { return };
    let header = |name: &str| {
        let of = |line: &str| {
            line.split_once(": ")
                .filter(|(found, _)| found.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_owned())
        };
        head.lines().skip(1).find_map(of)
    };
    let authorization = header("authorization");
    state.asked.fetch_add(1, Ordering::SeqCst);
    let wanted = state.token.lock().unwrap().as_ref().map(|token| format!("Bearer {token}"));
    let status = match state.status.load(Ordering::SeqCst) {
        _ if wanted.is_some() && wanted != authorization => 401,
        0 => 200,
        status => status,
    };
    if status < 300 {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        state.told.lock().unwrap().push(Told { path, authorization, body });
    }
    let answer =
        format!("HTTP/1.1 {status} Answer\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.flush();
}

/// Head and body of a POST; nothing of anything else.
fn read_request(stream: &mut impl Read) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    head.starts_with("POST ").then_some((head, body))
}
