// Package inside tests the programs on a kernel with device-mapper: real pools, real
// file systems, and devices that fail as they are told to. Its tests exist with the
// build tag testkernel only, and package kernel runs all of them in one boot of the
// test kernel.
//
// A test begins with newSite, which has all else: devices, pools and file systems on
// the test kernel's second disk (device_test.go, pool_test.go, filesystem_test.go),
// images (image_test.go), and the programs with their events (program_test.go). The
// first disk holds the journals and whatever is to be safe from faults.
//
// Faults have a place rather than a moment: a range of a device's table, or a gate
// that holds writers back until the test goes on (device_test.go, split_test.go), so
// that no verdict depends on how fast anything is.
package inside
