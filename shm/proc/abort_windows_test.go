package proc_test

const abortCode = 2

func abort() { panic("abort") }
