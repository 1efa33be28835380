//! The application's service, with an eye on what is asked and answered.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::service::TowerToHyperService;
use pin_project_lite::pin_project;

use super::connection::Policy;
use super::conversation::Conversation;
use super::{App, Peer, Session};

/// The service of one connection.
#[derive(Clone, Debug)]
pub(super) struct Watched<S> {
    pub(super) service: TowerToHyperService<S>,
    pub(super) conversation: Arc<Conversation>,
    pub(super) policy: Arc<Policy>,
    pub(super) peer: Peer,
}

impl<S: App> Service<Request<Incoming>> for Watched<S> {
    type Response = Response<Tail<S::Body>>;
    type Error = S::Error;
    type Future = Answering<<TowerToHyperService<S> as Service<Request<Incoming>>>::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let is_http2 = request.version() == Version::HTTP_2;
        self.conversation.begin_answer(&request);
        let answer = Answer(Arc::clone(&self.conversation));
        let is_connect = request.method() == Method::CONNECT;
        let session = Session { peer: self.peer.clone(), draining: self.policy.draining.clone() };
        #[cfg(feature = "axum")]
        if let Peer::Inet(address) = self.peer {
            request.extensions_mut().insert(axum::extract::ConnectInfo(address));
        }
        request.extensions_mut().insert(session);
        Answering {
            future: self.service.call(request),
            answer: Some(answer),
            policy: Arc::clone(&self.policy),
            is_http2,
            is_connect,
        }
    }
}

/// Counts as an answer that is under way.
#[derive(Debug)]
pub(super) struct Answer(Arc<Conversation>);

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.end_answer();
    }
}

pin_project! {
    /// The application's answer, on its way.
    #[derive(Debug)]
    pub(super) struct Answering<F> {
        #[pin]
        future: F,
        answer: Option<Answer>,
        policy: Arc<Policy>,
        is_http2: bool,
        is_connect: bool,
    }
}

impl<F, B, E> Future for Answering<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Tail<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        let Some(answer) = this.answer.take() else { return Poll::Pending };
        let conversation = &answer.0;
        let status = response.status();
        let is_upgrade =
            status == StatusCode::SWITCHING_PROTOCOLS || (*this.is_connect && status.is_success());
        if !*this.is_http2 {
            if is_upgrade {
                conversation.upgrade();
            } else if this.policy.announces_end(conversation) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
        }
        Poll::Ready(Ok(response.map(|body| Tail { body, _answer: answer })))
    }
}

pin_project! {
    /// The body of an answer, which ends with it.
    #[derive(Debug)]
    pub(super) struct Tail<B> {
        #[pin]
        body: B,
        _answer: Answer,
    }
}

impl<B: Body> Body for Tail<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
