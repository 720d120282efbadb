// Package testkernel runs commands and tests on a real Linux kernel that has
// device-mapper, on machines whose own kernel does not: User Mode Linux, a kernel as
// an ordinary process.
//
// # What it is like inside
//
// The root is the host's own tree, read-only, so every installed program is there and
// nothing can be damaged. Writable are:
//
//	$TMPDIR, /run, /mnt, /var/lib   tmpfs, empty
//	the working directory           unless Config.Dir says otherwise; on the host
//	/dev/ubda, /dev/ubdb, ...       the disks of Config, files on the host
//
// There is no udev; DM_DISABLE_UDEV is set, and LVM has a configuration of its own that
// uses no other devices than these disks and what is stacked on them. The
// environment has DECANT_TEST_KERNEL=1, and DECANT_TEST_DISKS with the disks' nodes,
// separated by spaces. The kernel has one processor, which is one of the host's; a process
// of the host does the I/O of the disks beside it.
//
// # Tests
//
// Tests for inside are compiled with the build tag "testkernel" and so do not exist in
// a normal run. RunTests compiles and runs those of a package in one boot, and reports
// each of them as a subtest.
//
// # Power cuts
//
// PowerCut kills the kernel between two instructions. What it had written to its disks
// is in the host's page cache and stays; what it had not, the dirty pages of its own
// file systems included, is lost. Boot again on the same disks to see what survived.
//
// It needs root and the Debian packages user-mode-linux and kmod.
package testkernel
