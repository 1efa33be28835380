//! As much of HTTP/1.1 as tells whether an answer is complete.

use crate::process::Pid;

/// A complete answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// The bytes are not the beginning of an answer, or of one whose end would be seen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotHttp;

impl Response {
    /// Reads an answer; `None` if it is not complete yet.
    ///
    /// The answer has to tell its length. One that ends with the connection is refused: whether a
    /// dying service has cut it could not be seen.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, NotHttp> {
        const HEAD_END: &[u8] = b"\r\n\r\n";
        let Some(head_bytes) = bytes.windows(HEAD_END.len()).position(|end| end == HEAD_END) else {
            return Ok(None);
        };
        let head = str::from_utf8(&bytes[..head_bytes]).map_err(|_| NotHttp)?;
        let rest = &bytes[head_bytes + HEAD_END.len()..];

        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(status).ok_or(NotHttp)?;
        let body = match length(lines)? {
            Length::Bytes(length) if rest.len() > length => return Err(NotHttp),
            Length::Bytes(length) => (rest.len() == length).then(|| rest.to_vec()),
            Length::Chunked => unchunk(rest)?,
        };
        Ok(body.map(|body| Self { status, body }))
    }
}

/// Returns the pid with which a body begins, if it does.
pub(crate) fn leading_pid(body: &[u8]) -> Option<Pid> {
    let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&body[..digits]).ok()?.parse().ok()
}

enum Length {
    Bytes(usize),
    Chunked,
}

fn status(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

fn length<'a>(mut headers: impl Iterator<Item = &'a str>) -> Result<Length, NotHttp> {
    let found = headers.find_map(|header| {
        let (name, value) = header.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            Some(value.parse().map(Length::Bytes).map_err(|_| NotHttp))
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            let chunked = value.eq_ignore_ascii_case("chunked");
            Some(if chunked { Ok(Length::Chunked) } else { Err(NotHttp) })
        } else {
            None
        }
    });
    found.unwrap_or(Err(NotHttp))
}

/// Joins the chunks up to the empty one at the end; `None` if it has not come yet.
fn unchunk(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, NotHttp> {
    let mut body = Vec::new();
    loop {
        let Some(line_bytes) = bytes.windows(2).position(|end| end == b"\r\n") else {
            return Ok(None);
        };
        let line = str::from_utf8(&bytes[..line_bytes]).map_err(|_| NotHttp)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| NotHttp)?;
        let Some(chunk) = bytes[line_bytes + 2..].split_at_checked(size) else { return Ok(None) };
        // No trailers: after the data of a chunk, and after the last one, is an empty line.
        match chunk.1 {
            [b'\r', b'\n', rest @ ..] => bytes = rest,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(NotHttp),
        }
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(chunk.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: y\r\n\r\n42 ok";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nab\n\r\n1\r\nc\r\n0\r\n\r\n";

    #[test]
    fn an_answer_is_complete_at_its_last_byte_and_not_before() {
        for (answer, status, body) in [(PLAIN, 200, "42 ok"), (CHUNKED, 503, "ab\nc")] {
            for cut in 0..answer.len() {
                assert_eq!(Response::parse(&answer[..cut]), Ok(None), "cut at {cut}");
            }
            let whole = Response { status, body: body.into() };
            assert_eq!(Response::parse(answer), Ok(Some(whole)));
        }
    }

    #[test]
    fn what_is_no_answer_of_known_length_is_refused() {
        for answer in [
            "ping 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nto the end",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\ntoo long",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        ] {
            assert_eq!(Response::parse(answer.as_bytes()), Err(NotHttp), "{answer}");
        }
    }

    #[test]
    fn a_body_may_begin_with_a_pid() {
        assert_eq!(leading_pid(b"42 ok"), Some(42));
        assert_eq!(leading_pid(b"42"), Some(42));
        assert_eq!(leading_pid(b"ok 42"), None);
    }
}
