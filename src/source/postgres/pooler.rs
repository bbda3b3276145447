//! Poolers that give every transaction, or statement, whatever session is free: snapshots, locks and settings of a session do not last there.
//!
//! A server says at login which process answers (BackendKeyData), for whoever wants to cancel a statement, and it is the one that answers later on. A pooler
//! says something of its own there. Whether it keeps sessions apart is then seen by asking who answers while another session is in a transaction.

use std::{
    future::{Ready, ready},
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_postgres::{
    Client, SimpleQueryMessage,
    tls::{ChannelBinding, TlsConnect, TlsStream},
};

use super::{
    connect::Session,
    error::{PostgresError, query},
};

/// How often a session is looked at that may be shared. Where others use the pool, one look in four was seen to find nothing.
const LOOKS: usize = 12;

/// Is this the session of a pool that shares it? `other` opens another one. Nothing is set on either.
pub(super) async fn is_shared(
    client: &Client,
    other: impl AsyncFnOnce() -> Result<Session, PostgresError>,
) -> Result<bool, PostgresError> {
    let process = answering(client, "").await?;
    if promised(client).await == Some(process) {
        return Ok(false);
    }
    let other = other().await?;
    for _ in 0..LOOKS {
        let of_other = match answering(&other, "BEGIN; ").await {
            // A pool of statements takes no transactions.
            Err(PostgresError::Query { detail, .. }) if detail.contains("pooling mode") => return Ok(true),
            of_other => of_other?,
        };
        // Where the pool has no other, ours would wait for it.
        if of_other == process || answering(client, "").await? != process {
            return Ok(true);
        }
        other.batch_execute("ROLLBACK").await.map_err(query("ending a transaction"))?;
    }
    Ok(false)
}

/// The process that answers now. By the simple protocol, which a pooler understands in any mode.
async fn answering(client: &Client, before: &str) -> Result<i32, PostgresError> {
    let answer = client.simple_query(&format!("{before}SELECT pg_catalog.pg_backend_pid()")).await;
    let answer = answer.map_err(query("asking which process answers"))?;
    let number = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    Ok(number.unwrap_or_default())
}

/// The process that was told at login. The client keeps it for requests to cancel, so we let it write one, to ourselves: length, code, process and key
/// (PostgreSQL documentation, "Message Formats", CancelRequest).
async fn promised(client: &Client) -> Option<i32> {
    let (near, mut far) = tokio::io::duplex(64);
    let token = client.cancel_token();
    let read = async {
        let mut first = [0; 8];
        far.read_exact(&mut first).await.ok()?;
        // On a connection with TLS it asks for that first: eight bytes, answered by one.
        if first[..4] == [0, 0, 0, 8] {
            far.write_all(b"S").await.ok()?;
            far.read_exact(&mut first).await.ok()?;
        }
        let process = far.read_i32().await.ok()?;
        let _ = far.read_i32().await;
        Some(process)
    };
    let (_, process) = tokio::join!(token.cancel_query_raw(near, ToOurselves), read);
    process
}

/// TLS that is none, on a stream that goes nowhere.
struct ToOurselves;

impl TlsConnect<DuplexStream> for ToOurselves {
    type Stream = Plain;
    type Error = io::Error;
    type Future = Ready<io::Result<Plain>>;

    fn connect(self, stream: DuplexStream) -> Self::Future {
        ready(Ok(Plain(stream)))
    }
}

struct Plain(DuplexStream);

impl TlsStream for Plain {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
