//! What `tonic-prost-build` writes for this, by hand, so that nobody needs protoc:
//!
//! ```proto
//! package example;
//!
//! service Example {
//!   rpc Who(google.protobuf.Empty) returns (Process);
//!   rpc Count(Limit) returns (stream Chunk);
//! }
//! ```

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::tokio_stream::Stream;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Process {
    #[prost(uint32, tag = "1")]
    pub(crate) pid: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) generation: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Limit {
    #[prost(uint64, tag = "1")]
    pub(crate) chunks: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Chunk {
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) padding: Vec<u8>,
}

pub(crate) const WHO: &str = "/example.Example/Who";
pub(crate) const COUNT: &str = "/example.Example/Count";

pub(crate) trait Example: Send + Sync + 'static {
    fn who(&self) -> Result<Process, Status>;
    fn count(
        &self,
        limit: Limit,
    ) -> Result<impl Stream<Item = Result<Chunk, Status>> + Send + use<Self>, Status>;
}

pub(crate) struct ExampleServer<T>(Arc<T>);

impl<T> ExampleServer<T> {
    pub(crate) fn new(example: T) -> Self {
        Self(Arc::new(example))
    }
}

impl<T> Clone for ExampleServer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> NamedService for ExampleServer<T> {
    const NAME: &'static str = "example.Example";
}

impl<T: Example> Service<http::Request<Body>> for ExampleServer<T> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let example = Arc::clone(&self.0);
        match request.uri().path() {
            WHO => Box::pin(async move {
                Ok(Grpc::new(ProstCodec::default()).unary(Who(example), request).await)
            }),
            COUNT => Box::pin(async move {
                let mut grpc = Grpc::new(ProstCodec::default());
                Ok(grpc.server_streaming(Count(example), request).await)
            }),
            _ => Box::pin(ready(Ok(Status::unimplemented("").into_http()))),
        }
    }
}

struct Who<T>(Arc<T>);

impl<T: Example> UnaryService<()> for Who<T> {
    type Response = Process;
    type Future = Ready<Result<Response<Process>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(self.0.who().map(Response::new))
    }
}

struct Count<T>(Arc<T>);

impl<T: Example> ServerStreamingService<Limit> for Count<T> {
    type Response = Chunk;
    type ResponseStream = tonic::codegen::BoxStream<Chunk>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Limit>) -> Self::Future {
        ready(match self.0.count(request.into_inner()) {
            Ok(chunks) => Ok(Response::new(Box::pin(chunks))),
            Err(status) => Err(status),
        })
    }
}
