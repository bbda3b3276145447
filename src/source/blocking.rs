//! Between async code and a thread that reads: what one side sends, the other reads as one stream of bytes.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// Everything that is sent, in order. Each item is dropped when it is read, and with it its share of the memory budget.
pub(super) struct Received<T> {
    from: mpsc::Receiver<T>,
    current: Option<T>,
    at: usize,
}

impl<T> Received<T> {
    pub(super) fn new(from: mpsc::Receiver<T>) -> Self {
        Self { from, current: None, at: 0 }
    }
}

impl<T: AsRef<[u8]>> Read for Received<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(rest) =
                self.current.as_ref().and_then(|item| item.as_ref().get(self.at..)).filter(|r| !r.is_empty())
            {
                let n = buffer.len().min(rest.len());
                buffer[..n].copy_from_slice(&rest[..n]);
                self.at += n;
                return Ok(n);
            }
            (self.current, self.at) = (self.from.blocking_recv(), 0);
            if self.current.is_none() {
                return Ok(0);
            }
        }
    }
}

/// What is read goes on, in pieces of this many bytes at most.
const PIECE: usize = 128 * 1024;

/// Passes on what is read through it. Whoever reads it to its end has passed everything.
pub(super) struct Passing<R> {
    from: R,
    to: mpsc::Sender<Bytes>,
    piece: BytesMut,
}

impl<R: Read> Passing<R> {
    pub(super) fn new(from: R, to: mpsc::Sender<Bytes>) -> Self {
        Self { from, to, piece: BytesMut::with_capacity(PIECE) }
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE)).freeze();
        // The other end is gone, and says why.
        self.to.blocking_send(piece).map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "stopped"))
    }
}

impl<R: Read> Read for Passing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(PIECE);
        let n = self.from.read(&mut buffer[..most])?;
        if self.piece.len() + n > PIECE || (n == 0 && !self.piece.is_empty()) {
            self.send()?;
        }
        self.piece.extend_from_slice(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_read_is_what_was_sent_and_goes_on() {
        for (pieces, buffer) in
            [(vec![1, 0, 300_000, 7], 1000), (vec![0, 0], 10), (vec![500_000], 400_000), (vec![], 1)]
        {
            let sent: Vec<Bytes> =
                pieces.iter().map(|len| (0..*len).map(|i: usize| i as u8).collect::<Vec<u8>>().into()).collect();
            let ((to, from), (pass, mut passed)) = (mpsc::channel(1), mpsc::channel(1));
            let reading = tokio::task::spawn_blocking(move || {
                let (mut reading, mut read, mut space) =
                    (Passing::new(Received::new(from), pass), Vec::new(), vec![0; buffer]);
                while let n @ 1.. = reading.read(&mut space).unwrap() {
                    read.extend_from_slice(&space[..n]);
                }
                read
            });
            let all = sent.concat();
            let sending = async move {
                for item in sent {
                    to.send(item).await.unwrap();
                }
            };
            let taking = async {
                let mut taken = Vec::new();
                while let Some(piece) = passed.recv().await {
                    assert!((1..=PIECE).contains(&piece.len()));
                    taken.extend_from_slice(&piece);
                }
                taken
            };
            let ((), taken) = tokio::join!(sending, taking);
            assert_eq!((taken, reading.await.unwrap()), (all.clone(), all));
        }
    }
}
