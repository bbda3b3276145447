//! The replication exchange, from our side: a server hands over its data as to a replica.
//!
//! `AUTH`, `REPLCONF capa eof` (only for the diskless form), `REPLCONF rdb-only 1` (the server then queues no writes for us),
//! `PSYNC ? -1`; `+FULLRESYNC <replication id> <offset>` is the cut. Empty lines in between say that the server is at work: it sends
//! one a second. Then `$<length>` or `$EOF:<40 bytes>` and the file (Redis' `replication.c`; research A1).

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{error::RedisError, form::Form, server::Server, wire::Wire};

/// Bytes of an end mark.
pub(super) const MARK: usize = 40;
/// How long the server may be silent. It sends an empty line a second while it saves.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a dump may take to begin: saves of others come first.
pub(super) const MOST_WAIT: Duration = Duration::from_secs(3600);

/// How the server says where the file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    /// By its length in bytes.
    Length(u64),
    /// By these bytes behind it.
    Mark([u8; MARK]),
}

/// A dump that the server has begun.
pub(super) struct Dump {
    wire: Wire,
    server: String,
    /// The replication id of the server's history.
    pub(super) replication_id: String,
    /// Bytes of the replication stream at the cut.
    pub(super) offset: u64,
    /// When `+FULLRESYNC` came.
    pub(super) at: Instant,
    /// How long question and answer took on this connection, where the server had nothing to do in between.
    pub(super) round_trip: Duration,
    /// How the data comes.
    pub(super) form: Form,
}

impl Dump {
    /// Asks for a dump and waits for its cut.
    pub(super) async fn request(server: &Server, form: Form) -> Result<Self, RedisError> {
        let mut wire = Wire::connect(server).await?;
        if matches!(form, Form::Diskless { .. }) {
            wire.ask("asking for a dump without a file", &[b"REPLCONF", b"capa", b"eof"]).await?;
        }
        let asked = Instant::now();
        wire.ask("asking for a dump without later writes", &[b"REPLCONF", b"rdb-only", b"1"]).await?;
        let round_trip = asked.elapsed();
        let what = "asking for a dump";
        wire.writing.send(what, &super::wire::command(&[b"PSYNC", b"?", b"-1"])).await?;
        let name = server.name();
        let line = match tokio::time::timeout(MOST_WAIT, wire.reading.line_after_newlines(what, SILENCE)).await {
            Ok(line) => line?,
            Err(_) => {
                let detail = format!("no dump began within {} min", MOST_WAIT.as_secs() / 60);
                return Err(RedisError::Broken { server: name, what: what.into(), detail });
            }
        };
        let at = Instant::now();
        let Some((replication_id, offset)) = full_resync(&line) else { return Err(not_expected(name, what, &line)) };
        Ok(Self { wire, server: name, replication_id, offset, at, round_trip, form })
    }

    /// Host and port of the server, for messages.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Waits for the file to begin.
    pub(super) async fn announced(&mut self) -> Result<Announced, RedisError> {
        let what = "waiting for the dump";
        let line = match tokio::time::timeout(MOST_WAIT, self.wire.reading.line_after_newlines(what, SILENCE)).await {
            Ok(line) => line?,
            Err(_) => {
                let detail = format!("the dump was not ready within {} min", MOST_WAIT.as_secs() / 60);
                return Err(RedisError::Broken { server: self.server.clone(), what: what.into(), detail });
            }
        };
        announcement(&line).ok_or_else(|| not_expected(self.server.clone(), what, &line))
    }

    /// The next bytes; none where the server closed the connection.
    pub(super) async fn chunk(&mut self) -> Result<Bytes, RedisError> {
        self.wire.reading.chunk("reading the dump", SILENCE).await
    }

    /// Looks whether the user may ask for dumps, without asking for one: with an answer still on its way the server refuses PSYNC
    /// (`clientHasPendingReplies` in Redis' `replication.c`), but only after it has looked at the user's rights.
    pub(super) async fn probe(server: &Server) -> Result<(), RedisError> {
        let mut wire = Wire::connect(server).await?;
        let what = "asking whether a dump may be taken";
        // If one began after all, it must not leave a file where that can be helped.
        wire.ask(what, &[b"REPLCONF", b"capa", b"eof"]).await?;
        let mut both = super::wire::command(&[b"REPLCONF", b"rdb-only", b"1"]);
        both.extend(super::wire::command(&[b"PSYNC", b"?", b"-1"]));
        wire.writing.send(what, &both).await?;
        wire.reading.answer(what).await?;
        match wire.reading.line_after_newlines(what, SILENCE).await? {
            line if line.starts_with(b"-ERR SYNC and PSYNC are invalid with pending output") => Ok(()),
            // It began one after all; that ends with the connection.
            line if full_resync(&line).is_some() => Ok(()),
            line => Err(not_expected(server.name(), what, &line)),
        }
    }
}

fn not_expected(server: String, what: &str, line: &[u8]) -> RedisError {
    match line.strip_prefix(b"-") {
        Some(text) => RedisError::Said { server, what: what.into(), text: super::wire::error_text(text) },
        None => {
            let text = String::from_utf8_lossy(&line[..line.len().min(64)]).escape_debug().to_string();
            RedisError::Strange { server, what: what.into(), text }
        }
    }
}

/// `+FULLRESYNC <40 characters> <offset>`.
fn full_resync(line: &[u8]) -> Option<(String, u64)> {
    let mut words = std::str::from_utf8(line).ok()?.strip_prefix("+FULLRESYNC ")?.split(' ');
    let id = words.next().filter(|id| id.len() == 40)?;
    let offset = words.next()?.parse().ok()?;
    words.next().is_none().then(|| (id.to_owned(), offset))
}

/// `$<length>` or `$EOF:<mark>`.
fn announcement(line: &[u8]) -> Option<Announced> {
    if let Some(mark) = line.strip_prefix(b"$EOF:") {
        return Some(Announced::Mark(mark.try_into().ok()?));
    }
    let length = std::str::from_utf8(line.strip_prefix(b"$")?).ok()?.parse().ok()?;
    Some(Announced::Length(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_exchange() {
        let id = "0123456789012345678901234567890123456789";
        assert_eq!(full_resync(format!("+FULLRESYNC {id} 42").as_bytes()), Some((id.to_owned(), 42)));
        for line in ["+FULLRESYNC x 42", "+CONTINUE", "-ERR no", "+FULLRESYNC", &format!("+FULLRESYNC {id} -1")] {
            assert_eq!(full_resync(line.as_bytes()), None, "{line}");
        }
        assert_eq!(announcement(b"$112"), Some(Announced::Length(112)));
        let mark: [u8; MARK] = id.as_bytes().try_into().unwrap_or([0; MARK]);
        assert_eq!(announcement(format!("$EOF:{id}").as_bytes()), Some(Announced::Mark(mark)));
        for line in ["$-1", "$EOF:short", "$", "112", "-ERR BGSAVE failed, replication can't continue"] {
            assert_eq!(announcement(line.as_bytes()), None, "{line}");
        }
    }
}
