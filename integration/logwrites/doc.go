// Package logwrites reads what dm-log-writes has recorded, and tells what a power cut
// would have left of it at any moment.
//
// dm-log-writes is a device-mapper target that passes everything through to a device,
// and notes every write, discard and flush on another one. With several linear slices
// on top of it there is one order of all changes of several media: a Recording is that
// order, and knows which of them belongs to which Medium.
//
// A Cut is a power cut, and State what it leaves. Each medium has a cache of its own:
// a flush makes durable what was written to that medium before it, and nothing else.
//
// It needs neither a kernel with device-mapper nor root.
package logwrites
