// Package dm speaks the ioctl protocol of the Linux device-mapper. It knows devices,
// tables, messages and events; what a table or a message means is the business of
// the target type, and of the packages that use one.
//
// # Life of a device
//
//	Create ──► Load ──► Resume ──► (Suspend ──► Load ──► Resume)* ──► Remove
//
// A device has two slots for tables. Load fills the inactive one and Resume makes it
// the active one. I/O that meets a suspended device waits, in a state that no signal
// ends, until Resume: whoever suspends a device must not need it for anything on the
// way to resuming it.
//
// # Device nodes
//
// The kernel knows a device by its number; people know it as /dev/mapper/NAME. Where
// udev runs and has the rules of device-mapper, it makes that entry and this package
// waits for it. Elsewhere this package makes and removes the entry itself.
//
// # Errors
//
// What the kernel refuses comes back as an *Error around the errno. Some are worth
// knowing:
//
//	EBUSY   create, rename: the name or the UUID is taken; remove: the device is open
//	ENXIO   there is no such device
//	EINVAL  load: the target does not like its parameters, the kernel's log says why
package dm
