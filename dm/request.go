package dm

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// headerBytes is the size of struct dm_ioctl, which opens requests and answers alike.
// The data behind it is aligned, because the size is a multiple of alignment.
const headerBytes = unix.SizeofDmIoctl

// alignment of everything in requests and answers, on every architecture.
const alignment = 8

// request is one call of the kernel.
type request struct {
	command uint // DM_DEV_CREATE and so on
	name    string
	uuid    string
	flags   uint32
	event   uint32 // an event number, or flags for udev, depending on the command
	targets uint32
	data    []byte
}

// encode lays the request out in a buffer with room for that many bytes of answer.
// The kernel reads and writes the one buffer.
func (r *request) encode(answerBytes int) []byte {
	bytes := aligned(headerBytes + max(len(r.data), answerBytes))
	header := unix.DmIoctl{
		// The oldest minor version: the kernel refuses what is newer than itself,
		// and answers the same to all older ones.
		Version:      [3]uint32{unix.DM_VERSION_MAJOR, 0, 0},
		Data_size:    uint32(bytes),
		Data_start:   headerBytes,
		Target_count: r.targets,
		Flags:        r.flags,
		Event_nr:     r.event,
	}
	copy(header.Name[:unix.DM_NAME_LEN-1], r.name)
	copy(header.Uuid[:unix.DM_UUID_LEN-1], r.uuid)

	buffer := alignedBuffer(bytes)
	if _, err := binary.Encode(buffer, binary.NativeEndian, &header); err != nil {
		panic(err) // the buffer is large enough and the struct has fixed size
	}
	copy(buffer[headerBytes:], r.data)
	return buffer
}

// encodeTable is the data of DM_TABLE_LOAD: for each target a struct dm_target_spec
// whose next is the distance to the following one, and the parameters with a NUL.
func encodeTable(table []Target) []byte {
	data := make([]byte, 0, len(table)*2*unix.SizeofDmTargetSpec) // most parameters are short
	for _, t := range table {
		start := len(data)
		end := aligned(start + unix.SizeofDmTargetSpec + len(t.Params) + 1)
		data = append(data, make([]byte, end-start)...)
		spec := data[start:]
		binary.NativeEndian.PutUint64(spec[0:], t.Start)
		binary.NativeEndian.PutUint64(spec[8:], t.Length)
		binary.NativeEndian.PutUint32(spec[20:], uint32(end-start))
		copy(spec[24:24+maxTypeBytes], t.Type)
		copy(spec[unix.SizeofDmTargetSpec:], t.Params)
	}
	return data
}

// encodeMessage is the data of DM_TARGET_MSG: the sector, and the text with a NUL.
func encodeMessage(sector uint64, text string) []byte {
	data := binary.NativeEndian.AppendUint64(nil, sector)
	data = append(data, text...)
	return append(data, 0)
}

// cString is the data of DM_DEV_RENAME.
func cString(s string) []byte { return append([]byte(s), 0) }

func aligned(n int) int { return (n + alignment - 1) &^ (alignment - 1) }

// alignedBuffer returns bytes that begin at a multiple of alignment, which a []byte
// by itself does not promise. The size must be a multiple of alignment.
func alignedBuffer(bytes int) []byte {
	words := make([]uint64, bytes/alignment)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), bytes)
}
