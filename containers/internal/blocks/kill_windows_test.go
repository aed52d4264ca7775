package blocks

import "syscall"

const killedCode = 137 // of no other end

// kill ends this process as others can, at this very place.
func kill() {
	const me = ^syscall.Handle(0)
	syscall.TerminateProcess(me, killedCode)
	select {}
}
