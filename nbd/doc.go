// Package nbd serves devices over the Network Block Device protocol, and uses exports of
// other servers as devices. It knows nothing of what the devices are.
//
// # What is spoken
//
// Both sides speak the fixed newstyle handshake with TLS (STARTTLS), and structured
// replies. Extended headers, resizing and the old style are left out.
//
//	options   EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY,
//	          LIST_META_CONTEXT, SET_META_CONTEXT; all others are answered with UNSUP
//	requests  READ (DF), WRITE, TRIM, WRITE_ZEROES (NO_HOLE, FAST_ZERO), FLUSH, CACHE (does
//	          nothing), BLOCK_STATUS (REQ_ONE), DISC; FUA on all that write
//	contexts  base:allocation, and decant:hydrated, where bit 0 of the flags says that the
//	          bytes are where they are to stay: they need not be fetched from elsewhere
//
// The server answers a read with one piece of data, which DF would ask for. It tells the
// minimum and the preferred block size of an export, and a maximum payload of 32 MiB.
//
// # What is durable
//
// A reply to FLUSH, or to a request with FUA, is sent after a Device.Flush that began
// when the request had come has returned nil. That covers every request that was answered
// before on any connection, since all of them use the same Device: therefore the server
// says that several connections may be used (CAN_MULTI_CONN). Flushes that wait at the
// same time share one. After a failed one every later flush of the export fails, because
// a second attempt that succeeds would say nothing of the writes before the first.
//
// On the other side, a Client that has lost a connection with acknowledged writes that
// no flush had covered never flushes again: the server may have lost them.
//
// # Limits
//
// A client cannot make the server spend more than Limits say; see there for the numbers.
//
//	before a request   connections, in all and of one peer; 10 s for the handshake; 32 KiB
//	                   for the data of an option
//	requests           the number in work for each connection, the bytes of their
//	                   payloads for each connection and for the server, 64 replies that
//	                   wait; beyond that nothing is read from the client until it takes
//	                   replies
//	time               30 s for each MiB of a payload, in both directions; then the client
//	                   is disconnected. An idle one may stay
//
// A write whose payload has not come whole never reaches the device. Names of exports are
// keys of a table and nothing else.
//
// # Order
//
// Requests of one connection are carried out concurrently and answered as they are done.
// A client that wants one after the other waits for the reply, as the protocol says.
//
// # The kernel's client
//
// AttachKernel makes an export a block device of this host, /dev/nbdN, by netlink; the
// kernel gets a connection that is past the handshake. The block device outlives the
// process that serves it: its I/O waits for KernelDevice.DeadTime for somebody to come
// back with HoldKernel, and only then fails. Requests that were not answered are sent
// again, in no particular order, and may have been carried out already. Those that were
// answered are not: a program that uses the block device, a file system among them, goes
// on as if nothing had happened. So a server that may be started anew must not lose what
// it has answered, flushed or not, unless the power fails.
//
// # A device that is used by the process that serves it
//
// A process that serves a device must not wait for that device, or it waits for itself:
//
//   - It does not read or write the export, the block device made of it, or a file on it.
//     Its log, its journal and its sockets lie elsewhere.
//   - It keeps its memory locked, and tells the kernel that it is in the path of writeback
//     (PR_SET_IO_FLUSHER): otherwise an allocation in here can wait for pages that only
//     a write through here would free. Buffers come from pools, so that a busy server
//     seldom allocates, but a first large request does.
//   - Methods of the Device are called with no lock of this package held but the one
//     that lets only one flush of an export run at a time. They may use the Server, and
//     must not wait for the end of Serve, which waits for them.
//
// A call of a Device cannot be interrupted. One that hangs keeps its own reply, and the
// end of Serve, waiting; not other requests, as long as fewer than Limits.Depth hang.
package nbd
