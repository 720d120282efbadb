package thin

import (
	"errors"

	"decant/loopdev"
)

// Device is an open thin device of the kernel that was given by its path, whoever owns
// its pool. It behaves as a Volume does: it knows what of it is mapped, gives space
// back and zeroes by unmapping, and flushes only while the pool is fit to keep it. All
// methods may be called concurrently; ranges of concurrent writes must not overlap.
type Device struct {
	*deviceVolume
	stack *Stack
}

// AsDevice makes a Device of an open block device if it is a thin one, and is nil
// without an error if it is not. Then d stays the caller's; else Close closes it too.
func AsDevice(d *loopdev.Device) (*Device, error) {
	if d.Info().Kind != loopdev.Block {
		return nil, nil //nolint:nilnil // as documented
	}
	stack, err := FindStack(d.Info().Dev)
	if err != nil {
		return nil, err
	}
	if len(stack.Layers) == 0 || stack.Layers[0].Pool == nil || !stack.Layers[0].Exact {
		return nil, stack.Close()
	}
	b := stack.Layers[0].Pool
	v, err := newDeviceVolume(d, b.poolControl, b.volumeName, d.Info().Key)
	if err != nil {
		return nil, errors.Join(err, stack.Close())
	}
	return &Device{deviceVolume: v, stack: stack}, nil
}

// Close gives up locks and claims. It does not flush.
func (d *Device) Close() error { return errors.Join(d.deviceVolume.Close(), d.stack.Close()) }
