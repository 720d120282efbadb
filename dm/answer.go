package dm

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// answer is what the kernel made of a request: the header, and the data that the
// header declares. Everything in data is checked before it is used, because a header
// and data from a newer or faulty kernel must not bring the program down.
type answer struct {
	header unix.DmIoctl
	data   []byte
}

func (a *answer) has(flag uint32) bool { return a.header.Flags&flag != 0 }

// decodeAnswer splits a buffer that the kernel has filled.
func decodeAnswer(buffer []byte) (*answer, error) {
	a := &answer{}
	if _, err := binary.Decode(buffer, binary.NativeEndian, &a.header); err != nil {
		return nil, malformed("%d bytes are no header", len(buffer))
	}
	start, end := uint64(a.header.Data_start), uint64(a.header.Data_size)
	if end <= start {
		return a, nil // an answer without data declares less than the header's size
	}
	if start < headerBytes || end > uint64(len(buffer)) {
		return nil, malformed("data from byte %d to %d of a buffer of %d", start, end, len(buffer))
	}
	a.data = buffer[start:end]
	return a, nil
}

// info is the header as the state of a device.
func (a *answer) info() Info {
	h := &a.header
	return Info{
		Name:           text(h.Name[:]),
		UUID:           text(h.Uuid[:]),
		Device:         DeviceNumber(h.Dev),
		OpenCount:      int(h.Open_count),
		EventNumber:    h.Event_nr,
		TargetCount:    int(h.Target_count),
		Suspended:      a.has(unix.DM_SUSPEND_FLAG),
		ReadOnly:       a.has(unix.DM_READONLY_FLAG),
		ActiveTable:    a.has(unix.DM_ACTIVE_PRESENT_FLAG),
		InactiveTable:  a.has(unix.DM_INACTIVE_PRESENT_FLAG),
		DeferredRemove: a.has(unix.DM_DEFERRED_REMOVE),
	}
}

// decodeTable reads as many targets as the header counts. Unlike in a request, next
// is the distance from the first one.
func (a *answer) decodeTable() ([]Target, error) {
	var table []Target
	at := 0
	for i := range a.header.Target_count {
		if at > len(a.data) || len(a.data)-at < unix.SizeofDmTargetSpec {
			return nil, malformed("target %d of %d at byte %d of %d", i, a.header.Target_count, at, len(a.data))
		}
		spec := a.data[at:]
		params, ok := terminated(spec[unix.SizeofDmTargetSpec:])
		if !ok {
			return nil, malformed("the text of target %d has no end", i)
		}
		table = append(table, Target{
			Start:  binary.NativeEndian.Uint64(spec[0:]),
			Length: binary.NativeEndian.Uint64(spec[8:]),
			Type:   text(spec[24:unix.SizeofDmTargetSpec]),
			Params: params,
		})
		next := uint64(binary.NativeEndian.Uint32(spec[20:]))
		if next <= uint64(at) && i+1 < a.header.Target_count {
			return nil, malformed("target %d at byte %d is followed by one at %d", i, at, next)
		}
		at = int(next)
	}
	return table, nil
}

// chain calls entry for each element of a list in which a 32-bit number at nextAt is
// the distance to the following element, 0 in the last one. Elements have minBytes.
func (a *answer) chain(nextAt, minBytes int, entry func(element []byte) error) error {
	rest := a.data
	for len(rest) > 0 {
		if len(rest) < minBytes {
			return malformed("%d bytes at the end of a list", len(rest))
		}
		if err := entry(rest); err != nil {
			return err
		}
		next := uint64(binary.NativeEndian.Uint32(rest[nextAt:]))
		if next == 0 {
			return nil
		}
		if next < uint64(minBytes) || next > uint64(len(rest)) {
			return malformed("a list goes on %d bytes further, of %d", next, len(rest))
		}
		rest = rest[next:]
	}
	return nil
}

// decodeList reads struct dm_name_list: device number, next, name, and behind the
// name, aligned, event number, flags and UUID. known tells for each entry whether the
// kernel has said what its UUID is; kernels before 5.13 do not.
func (a *answer) decodeList(hasUUIDs bool) (list []Entry, known []bool, err error) {
	const nextAt, nameAt = 8, 12
	if len(a.data) < nameAt {
		return nil, nil, nil // without devices there is a zero at most
	}
	err = a.chain(nextAt, nameAt, func(element []byte) error {
		device := binary.NativeEndian.Uint64(element)
		if device == 0 {
			return nil
		}
		name, ok := terminated(element[nameAt:])
		if !ok {
			return malformed("the name of device %v has no end", DeviceNumber(device))
		}
		entry := Entry{Name: name, Device: DeviceNumber(device)}
		tail := aligned(nameAt + len(name) + 1)
		if len(element) < tail+8 {
			return malformed("the entry of %q has no event number", name)
		}
		entry.EventNumber = binary.NativeEndian.Uint32(element[tail:])
		flags := binary.NativeEndian.Uint32(element[tail+4:])
		if hasUUIDs && flags&unix.DM_NAME_LIST_FLAG_HAS_UUID != 0 {
			if entry.UUID, ok = terminated(element[tail+8:]); !ok {
				return malformed("the UUID of %q has no end", name)
			}
		}
		const told = unix.DM_NAME_LIST_FLAG_HAS_UUID | unix.DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID
		list, known = append(list, entry), append(known, hasUUIDs && flags&told != 0)
		return nil
	})
	return list, known, err
}

// decodeVersions reads struct dm_target_versions: next, three numbers, name.
func (a *answer) decodeVersions() ([]TargetVersion, error) {
	const nextAt, nameAt = 0, 16
	var list []TargetVersion
	err := a.chain(nextAt, nameAt+1, func(element []byte) error {
		name, ok := terminated(element[nameAt:])
		if !ok {
			return malformed("the name of a target type has no end")
		}
		list = append(list, TargetVersion{Type: name, Version: Version{
			Major: binary.NativeEndian.Uint32(element[4:]),
			Minor: binary.NativeEndian.Uint32(element[8:]),
			Patch: binary.NativeEndian.Uint32(element[12:]),
		}})
		return nil
	})
	return list, err
}

// decodeDeps reads struct dm_target_deps: a count, 4 bytes of nothing, numbers.
func (a *answer) decodeDeps() ([]DeviceNumber, error) {
	const numbersAt = 8
	if len(a.data) == 0 {
		return nil, nil // the device has no table
	}
	if len(a.data) < numbersAt {
		return nil, malformed("%d bytes of dependencies", len(a.data))
	}
	count := uint64(binary.NativeEndian.Uint32(a.data))
	numbers := a.data[numbersAt:]
	if count > uint64(len(numbers)/8) {
		return nil, malformed("%d dependencies in %d bytes", count, len(numbers))
	}
	deps := make([]DeviceNumber, count)
	for i := range deps {
		deps[i] = DeviceNumber(binary.NativeEndian.Uint64(numbers[8*i:]))
	}
	return deps, nil
}

// terminated is the text up to the first NUL, which must be there.
func terminated(b []byte) (string, bool) {
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return "", false
	}
	return string(b[:end]), true
}

// text is the text in a field of fixed size, which it may fill.
func text(field []byte) string {
	if s, ok := terminated(field); ok {
		return s
	}
	return string(field)
}
