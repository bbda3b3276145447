//! Our own connection to a Redis server: what the `redis` crate cannot carry. After `+FULLRESYNC` the bytes are no longer RESP, and a
//! value that is larger than our memory must be sent in pieces.

use std::{net::IpAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::{error::RedisError, server::Server};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an answer may take; also how long the other end may take no byte from us.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest line or error that is read, in bytes.
const MOST_LINE: usize = 64 * 1024;
/// What is read at once.
const CHUNK: usize = 128 * 1024;

/// An answer of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// A line, a number or a string.
    Text(Vec<u8>),
    /// An error, as text.
    Error(String),
}

/// One command in RESP: an array of strings.
pub(super) fn command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The half that reads.
pub(super) struct Reading {
    half: OwnedReadHalf,
    buffer: BytesMut,
    server: String,
}

/// The half that writes.
pub(super) struct Writing {
    half: OwnedWriteHalf,
    server: String,
}

/// A connection that is logged in.
pub(super) struct Wire {
    pub(super) reading: Reading,
    pub(super) writing: Writing,
}

impl Wire {
    /// Connects, and logs in where the server has a user or a password for us.
    pub(super) async fn connect(server: &Server) -> Result<Self, RedisError> {
        let name = server.name();
        let unreachable = |detail: String| RedisError::Unreachable { server: name.clone(), detail };
        let endpoint = &server.config.endpoint;
        let connecting = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
        let stream = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| unreachable(error.to_string()))?,
            Err(_) => return Err(unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))),
        };
        let mut wire = Self::over(stream, name)?;
        if let Some((user, password)) = server.login() {
            let login = [b"AUTH".as_slice(), user.as_bytes(), password.as_bytes()];
            wire.ask("logging in", &login).await?;
        }
        Ok(wire)
    }

    /// A connection that somebody else made.
    pub(super) fn over(stream: TcpStream, server: String) -> Result<Self, RedisError> {
        let broken = |error: std::io::Error| RedisError::Broken {
            server: server.clone(),
            what: "connecting".into(),
            detail: error.to_string(),
        };
        stream.set_nodelay(true).map_err(broken)?;
        let (read, write) = stream.into_split();
        Ok(Self {
            reading: Reading { half: read, buffer: BytesMut::new(), server: server.clone() },
            writing: Writing { half: write, server },
        })
    }

    /// Our end of it.
    pub(super) fn local_address(&self) -> Option<IpAddr> {
        self.reading.half.local_addr().ok().map(|address| address.ip())
    }

    /// Sends a command and waits for its answer; an error is one.
    pub(super) async fn ask(&mut self, what: &str, arguments: &[&[u8]]) -> Result<Vec<u8>, RedisError> {
        self.writing.send(what, &command(arguments)).await?;
        self.reading.answer(what).await
    }
}

impl Writing {
    /// Sends bytes.
    pub(super) async fn send(&mut self, what: &str, bytes: &[u8]) -> Result<(), RedisError> {
        // In slices, so that the deadline is for progress and not for the whole.
        for slice in bytes.chunks(CHUNK) {
            let sent = match timeout(ANSWER_TIMEOUT, self.half.write_all(slice)).await {
                Ok(sent) => sent.map_err(|error| error.to_string()),
                Err(_) => Err(format!("it took no data for {} s", ANSWER_TIMEOUT.as_secs())),
            };
            sent.map_err(|detail| RedisError::Broken { server: self.server.clone(), what: what.to_owned(), detail })?;
        }
        Ok(())
    }
}

impl Reading {
    fn broken(&self, what: &str, detail: impl Into<String>) -> RedisError {
        RedisError::Broken { server: self.server.clone(), what: what.to_owned(), detail: detail.into() }
    }

    fn strange(&self, what: &str, bytes: &[u8]) -> RedisError {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).escape_debug().to_string();
        RedisError::Strange { server: self.server.clone(), what: what.to_owned(), text }
    }

    /// The next bytes, as they come; none where the other end closed. Waits at most `silence`.
    pub(super) async fn chunk(&mut self, what: &str, silence: Duration) -> Result<Bytes, RedisError> {
        if self.buffer.is_empty() {
            self.buffer.reserve(CHUNK);
            match timeout(silence, self.half.read_buf(&mut self.buffer)).await {
                Ok(read) => read.map_err(|error| self.broken(what, error.to_string()))?,
                Err(_) => return Err(self.broken(what, format!("it sent nothing for {} s", silence.as_secs()))),
            };
        }
        Ok(self.buffer.split().freeze())
    }

    async fn more(&mut self, what: &str, silence: Duration) -> Result<(), RedisError> {
        self.buffer.reserve(CHUNK);
        match timeout(silence, self.half.read_buf(&mut self.buffer)).await {
            Ok(Ok(0)) => Err(self.broken(what, "it closed the connection")),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.broken(what, error.to_string())),
            Err(_) => Err(self.broken(what, format!("it sent nothing for {} s", silence.as_secs()))),
        }
    }

    /// A line without its end.
    async fn line(&mut self, what: &str, silence: Duration) -> Result<Bytes, RedisError> {
        let mut looked = 0;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer[looked..]) {
                let mut line = self.buffer.split_to(looked + end + 1).freeze();
                line.truncate(line.len() - 1);
                if line.ends_with(b"\r") {
                    line.truncate(line.len() - 1);
                }
                return Ok(line);
            }
            looked = self.buffer.len();
            if looked > MOST_LINE {
                return Err(self.strange(what, &self.buffer));
            }
            self.more(what, silence).await?;
        }
    }

    /// A line, after any number of empty ones: those say that the server is still at work.
    pub(super) async fn line_after_newlines(&mut self, what: &str, silence: Duration) -> Result<Bytes, RedisError> {
        loop {
            let line = self.line(what, silence).await?;
            if !line.is_empty() {
                return Ok(line);
            }
        }
    }

    /// Waits for something to read, and can be given up at any time.
    pub(super) async fn ready(&mut self, what: &str) -> Result<(), RedisError> {
        if !self.buffer.is_empty() {
            return Ok(());
        }
        self.buffer.reserve(CHUNK);
        match self.half.read_buf(&mut self.buffer).await {
            Ok(0) => Err(self.broken(what, "it closed the connection")),
            Ok(_) => Ok(()),
            Err(error) => Err(self.broken(what, error.to_string())),
        }
    }

    /// One answer: a line, a number, a string or an error; of several in one, the last.
    pub(super) async fn reply(&mut self, what: &str) -> Result<Reply, RedisError> {
        let line = self.line(what, ANSWER_TIMEOUT).await?;
        let (kind, text) = line.split_first().ok_or_else(|| self.strange(what, &line))?;
        match kind {
            b'+' | b':' => Ok(Reply::Text(text.to_vec())),
            b'-' => Ok(Reply::Error(error_text(text))),
            b'$' => {
                let length: usize = std::str::from_utf8(text)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .filter(|length| *length <= MOST_LINE)
                    .ok_or_else(|| self.strange(what, &line))?;
                while self.buffer.len() < length + 2 {
                    self.more(what, ANSWER_TIMEOUT).await?;
                }
                let string = self.buffer.split_to(length + 2);
                Ok(Reply::Text(string[..length].to_vec()))
            }
            b'*' => {
                let count = std::str::from_utf8(text).ok().and_then(|text| text.parse::<usize>().ok());
                let count = count.filter(|count| *count <= 1024).ok_or_else(|| self.strange(what, &line))?;
                let mut last = Reply::Text(Vec::new());
                for _ in 0..count {
                    last = Box::pin(self.reply(what)).await?;
                }
                Ok(last)
            }
            _ => Err(self.strange(what, &line)),
        }
    }

    /// One answer; an error is one.
    pub(super) async fn answer(&mut self, what: &str) -> Result<Vec<u8>, RedisError> {
        match self.reply(what).await? {
            Reply::Text(text) => Ok(text),
            Reply::Error(text) => Err(RedisError::Said { server: self.server.clone(), what: what.to_owned(), text }),
        }
    }

    /// One command of the other end, for whoever plays a server; none where it closed.
    pub(super) async fn command(&mut self, silence: Duration) -> Result<Vec<Vec<u8>>, RedisError> {
        const WHAT: &str = "reading a command";
        let number = |reading: &Self, line: &Bytes, sign: u8| {
            let text = line.strip_prefix(&[sign]).and_then(|text| std::str::from_utf8(text).ok());
            text.and_then(|text| text.parse::<usize>().ok())
                .filter(|number| *number <= 1024)
                .ok_or_else(|| reading.strange(WHAT, line))
        };
        let line = self.line_after_newlines(WHAT, silence).await?;
        if line[0] != b'*' {
            return Ok(line.split(|byte| *byte == b' ').map(<[u8]>::to_vec).collect());
        }
        let mut arguments = Vec::new();
        for _ in 0..number(self, &line, b'*')? {
            let line = self.line(WHAT, silence).await?;
            let length = number(self, &line, b'$')?;
            while self.buffer.len() < length + 2 {
                self.more(WHAT, silence).await?;
            }
            arguments.push(self.buffer.split_to(length + 2)[..length].to_vec());
        }
        Ok(arguments)
    }
}

/// A server's error as text. What follows "with args beginning with" repeats what it was sent, which may be a password.
pub(super) fn error_text(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let end = text.find(", with args beginning with").unwrap_or(text.len());
    text[..end].chars().take(500).collect()
}
